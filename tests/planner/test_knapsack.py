"""The multiple-choice knapsack against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesparse.planner.knapsack import solve

candidates = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 100)), min_size=1, max_size=4)
problems = st.lists(candidates, min_size=1, max_size=6)


def arrays(items):
    costs = [np.array([c for c, _ in item], np.int64) for item in items]
    losses = [np.array([x for _, x in item], np.float64) for item in items]
    return costs, losses


def brute_force(items, budget):
    totals = [
        (sum(c for c, _ in chosen), sum(x for _, x in chosen))
        for chosen in itertools.product(*items)
    ]
    return min((loss for cost, loss in totals if cost <= budget), default=None)


@settings(max_examples=300, deadline=None)
@given(problems, st.integers(0, 250))
def test_is_exactly_the_best_choice_there_is(items, budget):
    solution = solve(*arrays(items), budget)
    best = brute_force(items, budget)
    if best is None:
        assert solution is None
    else:
        assert solution is not None
        assert solution.loss == best
        assert solution.cost <= budget
        assert solution.bound <= solution.loss
        chosen = [item[i] for item, i in zip(items, solution.choice, strict=True)]
        assert solution.cost == sum(c for c, _ in chosen)
        assert solution.loss == sum(x for _, x in chosen)


@given(problems, st.integers(0, 250), st.integers(0, 50))
@settings(deadline=None)
def test_more_budget_is_never_worse(items, budget, more):
    small, large = solve(*arrays(items), budget), solve(*arrays(items), budget + more)
    if small is not None:
        assert large is not None
        assert large.loss <= small.loss


def test_worked_by_hand():
    # Two layers of 4, 3 or 2 bits; 5 bytes pay for one of 3 and one of 2, never for 4.
    costs = [np.array([4, 3, 2])] * 2
    losses = [np.array([1.0, 2.0, 9.0]), np.array([1.0, 4.0, 5.0])]
    solution = solve(costs, losses, 5)
    assert solution is not None
    assert solution.choice == (1, 2)
    assert (solution.cost, solution.loss) == (5, 7.0)


def test_hundreds_of_equal_layers_are_solved_to_the_bound():
    costs = [np.array([400, 310, 200])] * 300
    losses = [np.array([1.0, 4.0, 15.0])] * 300
    solution = solve(costs, losses, 300 * 350)
    assert solution is not None
    assert solution.cost <= 300 * 350
    assert solution.loss - solution.bound < 4.0


@pytest.mark.parametrize("seed", range(3))
def test_many_different_layers_stay_close_to_the_bound(seed):
    rng = np.random.default_rng(seed)
    costs = [np.sort(rng.integers(1, 10**6, 12))[::-1].copy() for _ in range(60)]
    losses = [np.sort(rng.random(12)) for _ in range(60)]
    solution = solve(costs, losses, int(sum(c.mean() for c in costs)))
    assert solution is not None
    assert solution.loss - solution.bound < 2e-3 * solution.loss


def test_nothing_to_choose():
    solution = solve([], [], 0)
    assert solution is not None
    assert solution.choice == ()
    assert solve([], [], -1) is None
