"""The front: from the smallest the rules allow to the largest, no plan beaten by another."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import nn

import edgesparse
from edgesparse.budget import Budget
from edgesparse.errors import BudgetExceeded, MissingDependency, UsageError
from edgesparse.planner import pareto_front, plan
from edgesparse.recipe import Recipe, Rule
from edgesparse.report.front import plot_front


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 128))
    return edgesparse.load(module.eval(), example_inputs=torch.zeros(1, 256))


@pytest.fixture(scope="module")
def front(layers):
    return pareto_front(layers, points=12)


def test_more_bytes_always_buy_less_loss(front):
    assert len(front) > 6
    for small, large in itertools.pairwise(front):
        assert small.nbytes < large.nbytes
        assert small.loss > large.loss


def test_it_reaches_from_end_to_end(layers, front):
    with pytest.raises(BudgetExceeded):
        plan(layers, budget=Budget(file=int(0.99 * front[0].nbytes)))
    assert front[-1].loss == 0.0


def test_a_fixed_recipe_is_one_point(layers):
    front = pareto_front(layers, Recipe((Rule(bits=4),)))
    assert len(front) == 1
    assert front[0].nbytes == plan(layers, Recipe((Rule(bits=4),))).nbytes


def test_the_plot_is_written(front, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "front.png"
    assert plot_front({"any": front}, path, title="layers", chosen=front[2]) == path
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_ending_that_is_no_image_is_refused(front, tmp_path):
    with pytest.raises(UsageError, match=r"expected an image ending in \.png"):
        plot_front({"any": front}, tmp_path / "front.txt", title="layers")


def test_without_matplotlib_it_says_what_to_install(front, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"edgesparse\[report\]"):
        plot_front({"any": front}, tmp_path / "front.png", title="layers")
