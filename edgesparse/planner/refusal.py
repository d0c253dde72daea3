"""Say why a budget cannot be met, what could be reached, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgesparse.errors import BudgetExceeded
from edgesparse.model import TensorKind
from edgesparse.planner.allocate import Limit, allocate
from edgesparse.planner.types import TensorPlan

_NAMED = 5


@dataclass(frozen=True)
class Smallest:
    """The smallest plan the rules allow.

    Attributes:
        entries: Every tensor at its smallest.
        nbytes: What each counts against the limit.
        without_constraints: Least bytes of the whole if every rule were open; None if all are.
    """

    entries: Sequence[TensorPlan]
    nbytes: Sequence[int]
    without_constraints: int | None


def refusal(limit: Limit, smallest: Smallest, *, of_what: str) -> BudgetExceeded:
    """Return the error for a limit that no choice keeps; ``of_what`` says what the limit counts."""
    largest = sorted(
        zip(smallest.nbytes, smallest.entries, strict=True), key=lambda pair: -pair[0]
    )[:_NAMED]
    named = ", ".join(f"{entry.tensor.name} {limit.said(nbytes)}" for nbytes, entry in largest)
    lines = [
        f"the budget cannot be met: {limit.name} {limit.said(limit.nbytes)}, smallest reachable "
        f"{limit.said(limit.smallest_nbytes)}{of_what}",
        f"largest tensors at their smallest: {named or 'none'}",
        f"what would help: {_help(limit, smallest, [entry for _, entry in largest])}",
    ]
    if limit.fixed_nbytes > limit.nbytes:
        lines.insert(1, f"{limit.said(limit.fixed_nbytes)} of it are no weights at all")
    error = BudgetExceeded("\n  ".join(lines))
    error.smallest_nbytes = limit.smallest_nbytes
    return error


def contradiction(limits: Sequence[Limit]) -> BudgetExceeded:
    """Return the error for limits that can each be kept, but not all of them."""
    said = " and ".join(f"{limit.name} {limit.said(limit.nbytes)}" for limit in limits)
    ways = []
    for limit in limits:
        others = [other for other in limits if other is not limit]
        choice = allocate([of.astype(np.float64) for of in limit.costs], *others)
        if choice is not None:  # the least of this one while the others hold
            ways.append(f"{limit.name}={_as_typed(limit, limit.total(choice))}")
    nearest = f", or {' or '.join(ways)} with the others as they are" if ways else ""
    return BudgetExceeded(
        f"the budget cannot be met: {said} can each be kept, but not together\n  what would help: "
        f"raise one of them{nearest}"
    )


def _as_typed(limit: Limit, amount: int) -> str:
    """Return an amount as ``--budget`` reads it, rounded up so that it is itself enough."""
    if limit.name == "latency":
        return f"{-(-amount * 101 // 100_000)}us"
    return f"{-(-amount * 101 // 100_000)}kB"


def _help(limit: Limit, smallest: Smallest, largest: Sequence[TensorPlan]) -> str:
    ways = []
    free = smallest.without_constraints
    if free is not None and free < limit.smallest_nbytes:
        ways.append(
            "not fixing bits, group size or sparsity by options or recipe (then "
            f"{limit.said(free)} can be reached)"
        )
    ways.append("--allow structured (removes whole neurons, layers or experts)")
    if largest and largest[0].tensor.kind == TensorKind.EMBEDDING:
        ways.append("a smaller vocabulary")
    ways.append(f"--budget {limit.name}={_as_typed(limit, limit.smallest_nbytes)}")
    return ", or ".join(ways)
