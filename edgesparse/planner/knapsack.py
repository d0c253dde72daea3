"""The multiple-choice knapsack: one candidate for every item, least loss within a budget.

    minimize  sum_i loss[i][c_i]    subject to  sum_i cost[i][c_i] <= budget

First the linear relaxation (Lagrange): on each item's lower convex hull of (cost, loss) the
cheapest candidate is upgraded step by step, most loss saved per byte first, until the budget ends.
That is optimal but for one broken step, and gives a bound. Then an exact finish: partial sums of
the items are extended one item at a time and dropped when the bound of the items still to come
cannot beat the best complete choice (after Pisinger, "A minimal algorithm for the multiple-choice
knapsack problem", 1995, whose core is here the whole list).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = Sequence[NDArray[np.int64]]
Losses = Sequence[NDArray[np.float64]]

# Partial sums kept after each item. Beyond it the finish is a beam search: still never worse than
# the greedy choice, and the gap to the bound is reported.
_MAX_STATES = 20_000


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One candidate for each item.

    Attributes:
        choice: Index of the candidate, by item.
        cost: Sum of the costs, at most the budget.
        loss: Sum of the losses.
        bound: No choice within the budget has less loss.
    """

    choice: tuple[int, ...]
    cost: int
    loss: float
    bound: float


@dataclass(frozen=True)
class _Step:
    """An upgrade of one item along its hull."""

    item: int
    candidate: int
    cost: int
    saved: float

    @property
    def rate(self) -> float:
        return self.saved / self.cost


@dataclass(frozen=True)
class _StepArrays:
    """The steps in columns."""

    item: NDArray[np.int64]
    cost: NDArray[np.int64]
    saved: NDArray[np.float64]


def solve(costs: Costs, losses: Losses, budget: int) -> Solution | None:
    """Return the best choice, or None when even the cheapest exceeds the budget.

    Args:
        costs: For each item the costs of its candidates, in bytes; at least one each.
        losses: The losses of the same candidates.
        budget: The most all costs may sum to.
    """
    if not costs:
        return Solution(choice=(), cost=0, loss=0.0, bound=0.0) if budget >= 0 else None
    cheapest = [_cheapest(c, x) for c, x in zip(costs, losses, strict=True)]
    if sum(int(c[i]) for c, i in zip(costs, cheapest, strict=True)) > budget:
        return None
    steps = sorted(
        (step for i in range(len(costs)) for step in _hull(i, costs[i], losses[i], cheapest[i])),
        key=lambda step: (-step.rate, step.item),
    )
    greedy = _greedy(costs, losses, cheapest, steps, budget)
    bounds = _bounds(costs, losses, cheapest, steps)
    bound = float(bounds[0](np.array([budget]))[0])
    choice = _finish(costs, losses, bounds, budget, _loss(losses, greedy)) or greedy
    cost = sum(int(c[i]) for c, i in zip(costs, choice, strict=True))
    return Solution(
        choice=tuple(choice), cost=cost, loss=_loss(losses, choice),
        bound=min(bound, _loss(losses, choice)),
    )  # fmt: skip


def _loss(losses: Losses, choice: Sequence[int]) -> float:
    return float(sum(x[i] for x, i in zip(losses, choice, strict=True)))


def _cheapest(cost: NDArray[np.int64], loss: NDArray[np.float64]) -> int:
    """Return the cheapest candidate, of equally cheap ones the best."""
    return int(np.lexsort((loss, cost))[0])


def _hull(item: int, cost: NDArray[np.int64], loss: NDArray[np.float64], start: int) -> list[_Step]:
    """Return the upgrades along one item's lower convex hull, best rate first."""
    steps: list[_Step] = []
    here = start
    while True:
        better = np.flatnonzero((loss < loss[here]) & (cost > cost[here]))
        if not len(better):
            return steps
        rates = (loss[here] - loss[better]) / (cost[better] - cost[here])
        # Of equal rates the longest step, so that hull points on a line are not split.
        best = better[np.lexsort((-cost[better], -rates))[0]]
        steps.append(
            _Step(item, int(best), int(cost[best] - cost[here]), float(loss[here] - loss[best]))
        )
        here = best


def _greedy(
    costs: Costs, losses: Losses, cheapest: Sequence[int], steps: Sequence[_Step], budget: int
) -> list[int]:
    """Take upgrades while they fit; an item whose step does not fit takes no later one."""
    choice = list(cheapest)
    left = budget - sum(int(c[i]) for c, i in zip(costs, cheapest, strict=True))
    closed: set[int] = set()
    for step in steps:
        if step.item in closed or step.cost > left:
            closed.add(step.item)
            continue
        choice[step.item] = step.candidate
        left -= step.cost
    for item in sorted(closed):
        left = _fill(costs[item], losses[item], choice, item, left)
    return choice


def _fill(
    cost: NDArray[np.int64], loss: NDArray[np.float64], choice: list[int], item: int, left: int
) -> int:
    """Spend what is left on the best candidate of one item; return what is left then."""
    here = choice[item]
    fits = np.flatnonzero(cost <= cost[here] + left)
    best = int(fits[np.lexsort((cost[fits], loss[fits]))[0]])
    choice[item] = best
    return left - int(cost[best] - cost[here])


class _Bound:
    """The linear relaxation's least loss of the items ``first`` and later, by bytes left."""

    def __init__(self, first: int, least: int, start: float, steps: _StepArrays) -> None:
        later = steps.item >= first
        self.least = least
        self._cost = least + np.concatenate([[0], np.cumsum(steps.cost[later])])
        self._loss = start - np.concatenate([[0.0], np.cumsum(steps.saved[later])])

    def __call__(self, left: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the bound; ``left`` must be at least ``least``."""
        return np.interp(left, self._cost, self._loss)


def _bounds(
    costs: Costs, losses: Losses, cheapest: Sequence[int], steps: Sequence[_Step]
) -> list[_Bound]:
    """Return the bound of the items from each one on, and of none at the end."""
    columns = _StepArrays(
        np.array([step.item for step in steps], np.int64),
        np.array([step.cost for step in steps], np.int64),
        np.array([step.saved for step in steps]),
    )
    least, start = 0, 0.0
    bounds = [_Bound(len(costs), least, start, columns)]
    for item in reversed(range(len(costs))):
        least += int(costs[item][cheapest[item]])
        start += float(losses[item][cheapest[item]])
        bounds.append(_Bound(item, least, start, columns))
    return bounds[::-1]


def _finish(
    costs: Costs, losses: Losses, bounds: Sequence[_Bound], budget: int, incumbent: float
) -> list[int] | None:
    """Return a choice strictly better than ``incumbent``, the best there is, or None."""
    limit = incumbent - 1e-12 * max(1.0, abs(incumbent))
    cost, loss = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for item, (c, x) in enumerate(zip(costs, losses, strict=True)):
        new_cost = (cost[:, None] + c).ravel()
        new_loss = (loss[:, None] + x).ravel()
        rest = bounds[item + 1]
        alive = np.flatnonzero(new_cost + rest.least <= budget)
        promise = new_loss[alive] + rest(budget - new_cost[alive])
        alive, promise = alive[promise < limit], promise[promise < limit]
        front = _undominated(new_cost[alive], new_loss[alive])
        if len(front) > _MAX_STATES:
            front = front[np.argpartition(promise[front], _MAX_STATES)[:_MAX_STATES]]
        alive = alive[front]
        if not len(alive):
            return None
        trail.append((alive // len(c), alive % len(c)))
        cost, loss = new_cost[alive], new_loss[alive]
    state, choice = int(loss.argmin()), []
    for parents, candidates in reversed(trail):
        choice.append(int(candidates[state]))
        state = int(parents[state])
    return choice[::-1]


def _undominated(cost: NDArray[np.int64], loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of points that no cheaper point equals or beats, by rising cost."""
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(loss[order])
    first = np.ones(len(order), np.bool_)
    first[1:] = loss[order][1:] < best[:-1]
    return order[first]
