"""Say why a budget cannot be met, what could be reached, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgesparse.budget import format_size
from edgesparse.errors import BudgetExceeded
from edgesparse.model import TensorKind
from edgesparse.planner.allocate import Limit
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


def refusal(limit: Limit, smallest: Smallest, *, target: str | None) -> BudgetExceeded:
    """Return the error for a limit that no choice keeps."""
    largest = sorted(
        zip(smallest.nbytes, smallest.entries, strict=True), key=lambda pair: -pair[0]
    )[:_NAMED]
    named = ", ".join(f"{entry.tensor.name} {format_size(nbytes)}" for nbytes, entry in largest)
    of_what = f" of the {target} file" if target and limit.name == "file" else ""
    lines = [
        f"the budget cannot be met: {limit.name} {format_size(limit.nbytes)}, smallest reachable "
        f"{format_size(limit.smallest_nbytes)}{of_what}",
        f"largest tensors at their smallest: {named or 'none'}",
        f"what would help: {_help(limit, smallest, [entry for _, entry in largest])}",
    ]
    if limit.fixed_nbytes > limit.nbytes:
        lines.insert(1, f"{format_size(limit.fixed_nbytes)} of it are no weights at all")
    error = BudgetExceeded("\n  ".join(lines))
    error.smallest_nbytes = limit.smallest_nbytes
    return error


def contradiction(first: Limit, second: Limit) -> BudgetExceeded:
    """Return the error for two limits that can each be kept, but not both."""
    return BudgetExceeded(
        f"the budget cannot be met: {first.name} {format_size(first.nbytes)} and {second.name} "
        f"{format_size(second.nbytes)} can each be kept, but not both\n  what would help: raise "
        "either one"
    )


def _help(limit: Limit, smallest: Smallest, largest: Sequence[TensorPlan]) -> str:
    ways = []
    free = smallest.without_constraints
    if free is not None and free < limit.smallest_nbytes:
        ways.append(
            "not fixing bits, group size or sparsity by options or recipe (then "
            f"{format_size(free)} can be reached)"
        )
    if largest and largest[0].tensor.kind == TensorKind.EMBEDDING:
        ways.append("a smaller vocabulary")
    # Rounded up, so that the size as printed is itself enough.
    kilobytes = -(-limit.smallest_nbytes * 101 // 100_000)
    ways.append(f"--budget {limit.name}={kilobytes}kB")
    return ", or ".join(ways)
