"""The front of size against predicted loss: the best plan at every budget between the ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from edgesparse.budget import Budget
from edgesparse.errors import BudgetExceeded
from edgesparse.model import CapturedModel
from edgesparse.planner.planning import plan
from edgesparse.planner.rates import Sensitivity
from edgesparse.planner.types import Plan
from edgesparse.recipe import Recipe

_POINTS = 24


def pareto_front(
    captured: CapturedModel,
    recipe: Recipe | None = None,
    *,
    target: str | None = None,
    sensitivity: Sensitivity | None = None,
    points: int = _POINTS,
) -> list[Plan]:
    """Return plans from the smallest the rules allow to the largest, none beaten by another.

    Args:
        captured: The model.
        recipe: What is wanted; what it leaves open makes the front.
        target: See ``plan``.
        sensitivity: See ``plan``.
        points: Budgets tried, evenly spaced by ratio.
    """

    def at(nbytes: int) -> Plan:
        budget = Budget(file=nbytes)
        made = plan(captured, recipe, budget=budget, target=target, sensitivity=sensitivity)
        return replace(made, dense_alternative=None)

    smallest = _smallest_nbytes(at)
    # Twice the source is more than anything packed or kept as float32 can take.
    largest = max(at(2 * captured.nbytes + 10 * smallest).file_nbytes, smallest)
    ratios = ((largest / smallest) ** (step / points) for step in range(points))
    front: list[Plan] = []
    for nbytes in (*(math.ceil(smallest * ratio) for ratio in ratios), largest):
        try:
            made = at(nbytes)
        except BudgetExceeded:
            continue  # at the very end a header may settle a few bytes higher
        if not front or made.loss < front[-1].loss:
            front.append(made)
    return front


def _smallest_nbytes(at: Callable[[int], Plan]) -> int:
    """Return the least bytes that can be reached, as a refusal says them."""
    try:
        return at(1).file_nbytes
    except BudgetExceeded as refusal:
        if refusal.smallest_nbytes is None:
            raise
        return refusal.smallest_nbytes
