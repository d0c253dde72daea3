"""``edgesparse plan``: what would be done to every tensor, and what it would cost."""

from __future__ import annotations

from typing import Any

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import show, show_json
from edgesparse.cli._options import (
    budget_option,
    common,
    recipe_from,
    recipe_options,
    target_option,
)

SHOWN = 40


@click.command(short_help="What would be done to every tensor, and its cost.")
@click.argument("model")
@recipe_options
@budget_option
@target_option
@click.option("--all", "show_all", is_flag=True, help="Show every tensor, however many.")
@common
def plan(
    model: str,
    budget: Budget | None,
    target: str | None,
    show_all: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Plan MODEL: what would be done to every tensor, and what it would cost.

    Reads shapes only, never weights, so it takes seconds for any size. An impossible budget exits
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
