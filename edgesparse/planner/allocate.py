"""Fit a budget: choose among the candidates of all tensors, least predicted loss first.

One limit is a multiple-choice knapsack. Further ones enter as prices on what they count, added to
the loss and raised one after the other by bisection until every limit holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesparse.budget import format_duration, format_size
from edgesparse.planner.knapsack import solve

_DOUBLINGS, _BISECTIONS = 60, 16

Choice = tuple[int, ...]


@dataclass(frozen=True)
class Limit:
    """One limit on a sum of costs.

    Attributes:
        name: ``file``, ``download``, ``peak``, or ``latency``, which counts nanoseconds.
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

    def total(self, choice: Sequence[int]) -> int:
        """Return what a choice takes."""
        chosen = sum(int(of[i]) for of, i in zip(self.costs, choice, strict=True))
        return self.fixed_nbytes + chosen

    def holds(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps the limit."""
        return self.total(choice) <= self.nbytes

    def said(self, amount: float) -> str:
        """Return an amount of what is counted, as a person reads it."""
        return format_duration(amount) if self.name == "latency" else format_size(amount)


def allocate(losses: Sequence[NDArray[np.float64]], first: Limit, *others: Limit) -> Choice | None:
    """Return the candidate for every tensor, or None when no choice is found to keep the limits.

    Args:
        losses: Predicted loss of every candidate, by tensor.
        first: The limit solved exactly.
        others: Further limits.
    """
    prices = [0.0] * len(others)
    choice = _solve(losses, first, others, prices)
    for _ in range(len(others) ** 2):  # a price raised later may break one that held
        broken = [i for i, limit in enumerate(others) if choice and not limit.holds(choice)]
        if choice is None or not broken:
            return choice
        for i in broken:
            choice = _raise_price(losses, first, others, prices, i)
            if choice is None:
                return None
    return choice if choice and all(limit.holds(choice) for limit in others) else None


def _raise_price(
    losses: Sequence[NDArray[np.float64]],
    first: Limit,
    others: Sequence[Limit],
    prices: list[float],
    which: int,
) -> Choice | None:
    """Find the least price of one limit with which it holds; set it and return the choice."""
    limit = others[which]
    most = max(int(of.max()) for of in limit.costs)
    scale = max(float(np.ptp(of)) for of in losses) / max(most, 1)
    low, high = prices[which], max(prices[which], max(scale, 1e-12) * 1e-6)

    def at(price: float) -> Choice | None:
        prices[which] = price
        found = _solve(losses, first, others, prices)
        return found if found is not None and limit.holds(found) else None

    for _ in range(_DOUBLINGS):
        choice = at(high)
        if choice is not None:
            break
        low, high = high, 2 * high
    else:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = at(middle)
        if found is not None:
            choice, high = found, middle
        else:
            low = middle
    prices[which] = high
    return choice


def _solve(
    losses: Sequence[NDArray[np.float64]],
    first: Limit,
    others: Sequence[Limit],
    prices: Sequence[float],
) -> Choice | None:
    """Return the best choice within ``first`` at prices for what the others count."""
    priced = list(losses)
    for limit, price in zip(others, prices, strict=True):
        if price:
            priced = [loss + price * of for loss, of in zip(priced, limit.costs, strict=True)]
    solution = solve(first.costs, priced, first.nbytes - first.fixed_nbytes)
    return None if solution is None else solution.choice
