"""``edgesparse plan``: what would be done to every tensor, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import show, show_json
from edgesparse.cli._options import (
    budget_option,
    cache_directory,
    common,
    recipe_from,
    recipe_options,
    target_option,
)

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
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run the model on this to see which tensors it minds; a minute instead of seconds.",
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
    calibration: Path | None,
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
    recipe = recipe_from(options)
    from edgesparse.capture import load
    from edgesparse.planner import plan as make_plan
    from edgesparse.report import tables
    from edgesparse.report.words import plan_in_words

    captured = load(model)
    made = make_plan(captured, recipe, budget=budget, target=target)
    sensitivity = None
    if calibration is not None:
        sensitivity = _sensitivity(captured, calibration)
        made = make_plan(captured, recipe, budget=budget, target=target, sensitivity=sensitivity)
    if plot is not None:
        _draw(captured, recipe, made, sensitivity, plot)
    if as_json:
        show_json({"model": captured.name, **made.to_json()})
        return
    limit = None if show_all else SHOWN
    show(tables.title(captured), tables.budget_line(made), "")
    show(tables.plan_table(made, limit=limit), "", tables.plan_totals(made))
    if made.dense_alternative is not None:
        show(f"equal bytes without sparsity: {plan_in_words(made.dense_alternative)}")
    for note in made.notes:
        show(f"note: {note}")


def _sensitivity(captured: CapturedModel, calibration: Path) -> Sensitivity:
    from edgesparse.cli._console import working
    from edgesparse.planner.sensitivity import measure_sensitivity

    with working("measuring which tensors the model minds") as step:
        return measure_sensitivity(captured, calibration, cache=cache_directory(), progress=step)


def _draw(
    captured: CapturedModel,
    recipe: Recipe | None,
    made: Plan,
    sensitivity: Sensitivity | None,
    path: Path,
) -> None:
    """Draw the front with and without sparsity, and this plan on it."""
    from edgesparse.cli._console import remark, working
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
