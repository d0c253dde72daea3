"""``edgesparse plan``: what would be done to every tensor, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._options import (
    allow_option,
    budget_option,
    cache_directory,
    common,
    opened,
    planned_option,
    recipe_from,
    recipe_options,
    target_option,
)
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    from edgesparse.model import CapturedModel
    from edgesparse.planner import Plan, Sensitivity
    from edgesparse.recipe import Recipe

SHOWN = 40


@click.command(short_help="What would be done to every tensor, and its cost.")
@click.argument("model")
@recipe_options
@budget_option
@target_option
@planned_option
@allow_option
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run the model on this to see which tensors it minds; a minute instead of seconds.",
)
@click.option(
    "--solve",
    is_flag=True,
    help="Also solve every candidate on it, once: as long as compressing the model sixty times.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="Draw size against predicted loss, over all budgets.",
)
@click.option("--all", "show_all", is_flag=True, help="Show every tensor, however many.")
@common
def plan(
    model: str,
    budget: Budget | None,
    target: str | None,
    settings: tuple[tuple[str, Any], ...],
    allow: tuple[str, ...],
    calibration: Path | None,
    solve: bool,
    plot: Path | None,
    show_all: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan MODEL: what would be done to every tensor, and what it would cost.

    Reads shapes only, never weights (unless --calibration is given), so it takes seconds for any
    size. An impossible budget exits
    3 and says what could be reached. MODEL is a Hugging Face directory, a .pt2 file, or
    package.module:factory.
    """
    recipe, cuts_parts = opened(recipe_from(options), allow)
    if solve and calibration is None:
        raise UsageError("--solve needs inputs to solve on; add --calibration TEXT")
    from edgesparse.planner.hopeless import refuse_hopeless

    if not cuts_parts:
        refuse_hopeless(model, recipe, budget, target)
    from edgesparse.capture import load
    from edgesparse.planner import plan as make_plan
    from edgesparse.report import tables
    from edgesparse.report.words import plan_in_words

    captured = load(model)
    sensitivity, cut = None, {}
    if cuts_parts:
        from edgesparse.cli._job import way_of

        way = way_of(
            captured,
            recipe,
            budget,
            target,
            calibration,
            settings=dict(settings),
            window=512,
            seed=0,
        )
        captured, made = way.captured, way.plan
        cut = {"cut": way.words, "cut_loss": way.cut_loss, "whole_loss": way.loss}
    else:
        with working("planning"):  # timing a runtime takes minutes, once
            made = make_plan(captured, recipe, budget=budget, target=target, options=dict(settings))
    if calibration is not None and not cuts_parts:
        sensitivity = _sensitivity(captured, calibration)
        if solve:
            sensitivity = _solved(captured, recipe, sensitivity, calibration, target)
        made = make_plan(
            captured, recipe, budget=budget, target=target, sensitivity=sensitivity,
            options=dict(settings),
        )  # fmt: skip
    if plot is not None:
        _draw(captured, recipe, made, sensitivity, plot)
    if as_json:
        show_json({"model": captured.name, **cut, **made.to_json()})
        return
    if cuts_parts:
        show(f"cut first: {way.words}, loss {way.cut_loss:.4f}; in all {way.loss:.4f}")
    limit = None if show_all else SHOWN
    show(tables.title(captured), tables.budget_line(made), "")
    show(tables.plan_table(made, limit=limit), "", tables.plan_totals(made))
    if made.dense_alternative is not None:
        show(f"equal bytes without sparsity: {plan_in_words(made.dense_alternative)}")
    for note in made.notes:
        show(f"note: {note}")


def _sensitivity(captured: CapturedModel, calibration: Path) -> Sensitivity:
    from edgesparse.planner.sensitivity import measure_sensitivity

    with working("measuring which tensors the model minds") as step:
        return measure_sensitivity(captured, calibration, cache=cache_directory(), progress=step)


def _solved(
    captured: CapturedModel,
    recipe: Recipe | None,
    sensitivity: Sensitivity,
    calibration: Path,
    target: str | None,
) -> Sensitivity:
    from edgesparse.planner import default_recipe
    from edgesparse.planner.layer_errors import Passes, measured_rates

    with working("solving every candidate") as step:
        passes = Passes(windows=None, cache=cache_directory(), progress=step)
        return measured_rates(
            captured, recipe or default_recipe(), sensitivity, calibration, passes, target=target
        )


def _draw(
    captured: CapturedModel,
    recipe: Recipe | None,
    made: Plan,
    sensitivity: Sensitivity | None,
    path: Path,
) -> None:
    """Draw the front with and without sparsity, and this plan on it."""
    from edgesparse.cli._console import remark
    from edgesparse.planner import default_recipe, pareto_front, without_sparsity
    from edgesparse.report.front import plot_front

    recipe = recipe or default_recipe()
    kinds = {"best found": recipe, "without sparsity": without_sparsity(recipe)}
    with working("the front"):
        fronts = {
            name: pareto_front(captured, of, target=made.target, sensitivity=sensitivity)
            for name, of in kinds.items()
        }
    loss = "predicted relative error" if sensitivity is None else "predicted KL divergence"
    plot_front(fronts, path, title=captured.name, chosen=made, loss_name=loss)
    remark(f"drawn {path}")
