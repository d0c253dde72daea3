"""Fit a budget: choose among the candidates of all tensors, least predicted loss first.

One limit is a multiple-choice knapsack. A second one enters as a price on its bytes, added to the
loss and raised by bisection until the limit holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesparse.planner.knapsack import solve

_DOUBLINGS, _BISECTIONS = 60, 16


@dataclass(frozen=True)
class Limit:
    """One limit on a sum of costs.

    Attributes:
        name: ``file`` or ``peak``.
        nbytes: The most the whole may take.
        costs: Bytes of every candidate, by tensor.
        fixed_nbytes: Bytes that no choice changes: headers, activations, …
    """

    name: str
    nbytes: int
    costs: Sequence[NDArray[np.int64]]
    fixed_nbytes: int

    @property
    def smallest_nbytes(self) -> int:
        """The least the whole can take."""
        return self.fixed_nbytes + sum(int(of.min()) for of in self.costs)

    def holds(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps the limit."""
        chosen = sum(int(of[i]) for of, i in zip(self.costs, choice, strict=True))
        return self.fixed_nbytes + chosen <= self.nbytes


def allocate(
    losses: Sequence[NDArray[np.float64]], first: Limit, second: Limit | None = None
) -> tuple[int, ...] | None:
    """Return the candidate for every tensor, or None when no choice keeps the limits.

    Args:
        losses: Predicted loss of every candidate, by tensor.
        first: The limit solved exactly.
        second: A further limit.
    """
    choice = _solve(losses, first, second, price=0.0)
    if second is None or choice is None or second.holds(choice):
        return choice
    scale = max(float(np.ptp(of)) for of in losses) / max(int(of.max()) for of in second.costs)
    low, high = 0.0, max(scale, 1e-12) * 1e-6
    for _ in range(_DOUBLINGS):
        choice = _solve(losses, first, second, price=high)
        if choice is not None and second.holds(choice):
            break
        low, high = high, 2 * high
    else:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = _solve(losses, first, second, price=middle)
        if found is not None and second.holds(found):
            choice, high = found, middle
        else:
            low = middle
    return choice


def _solve(
    losses: Sequence[NDArray[np.float64]], first: Limit, second: Limit | None, *, price: float
) -> tuple[int, ...] | None:
    """Return the best choice within ``first`` at a price for every byte of ``second``."""
    if second is not None and price:
        losses = [loss + price * cost for loss, cost in zip(losses, second.costs, strict=True)]
    solution = solve(first.costs, losses, first.nbytes - first.fixed_nbytes)
    return None if solution is None else solution.choice
