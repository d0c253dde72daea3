"""Sensitivities: what the model minds is found, and the planner listens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgesparse
from edgesparse.budget import Budget
from edgesparse.errors import CalibrationError
from edgesparse.packed import FORMATS
from edgesparse.pattern import Pattern
from edgesparse.planner import plan
from edgesparse.planner.rates import Rates, alike
from edgesparse.planner.sensitivity import (
    mean_kl,
    measure_sensitivity,
    remove_smallest,
    round_groups,
)


class Unequal(nn.Module):
    """Two parallel linear layers; the output listens ten times as much to the first."""

    def __init__(self):
        super().__init__()
        self.loud = nn.Linear(128, 64, bias=False)
        self.soft = nn.Linear(128, 64, bias=False)

    def forward(self, x):
        return self.loud(x) + 0.1 * self.soft(x)


@pytest.fixture(scope="module")
def unequal():
    torch.manual_seed(0)
    module = Unequal().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return edgesparse.load(module, example_inputs={"x": torch.randn(2, 128)})


@pytest.fixture(scope="module")
def rates(unequal):
    torch.manual_seed(1)
    return measure_sensitivity(unequal, [torch.randn(64, 128)])


def test_what_the_output_listens_to_matters_more(rates):
    # Errors add in squares: ten times as loud is a hundred times as sensitive.
    for kind in ("rounding", "pruning"):
        ratio = getattr(rates["loud.weight"], kind) / getattr(rates["soft.weight"], kind)
        assert ratio == pytest.approx(100, rel=0.25)


def test_gaussian_weights_on_random_inputs_err_as_the_error_model_says(rates):
    assert rates["loud.weight"].rounding == pytest.approx(1.0, rel=0.1)
    assert rates["loud.weight"].pruning == pytest.approx(1.0, rel=0.1)


def test_the_planner_spends_bytes_where_they_matter(unequal, rates):
    budget = Budget(file="9kB")
    made = plan(unequal, budget=budget, sensitivity=rates)
    bits = {entry.tensor.name: entry.nbytes for entry in made.tensors}
    assert bits["loud.weight"] > bits["soft.weight"]
    assert made.nbytes <= 9_000


def test_measuring_changes_nothing(unequal):
    before = {name: value.clone() for name, value in unequal.weights().items()}
    measure_sensitivity(unequal, [torch.randn(4, 128)])
    for name, value in unequal.weights().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_outputs_that_are_not_finite_are_refused(unequal):
    with pytest.raises(CalibrationError, match="not finite"):
        measure_sensitivity(unequal, [torch.full((1, 128), torch.inf)])


def test_progress_counts_tensors(unequal):
    seen = []
    measure_sensitivity(unequal, [torch.randn(2, 128)], progress=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]


def test_kl_is_that_of_torch():
    torch.manual_seed(0)
    dense, own = torch.randn(3, 7, 11), torch.randn(3, 7, 11)
    expected = functional.kl_div(
        own.log_softmax(-1).reshape(21, 11), dense.log_softmax(-1).reshape(21, 11),
        log_target=True, reduction="batchmean",
    )  # fmt: skip
    assert mean_kl([dense], [own]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("columns", [1, 100, 128, 300])
def test_rounding_keeps_the_shape_and_is_on_a_grid(columns):
    torch.manual_seed(0)
    matrix = torch.randn(5, columns)
    rounded = round_groups(matrix, 3, 128)
    assert rounded.shape == matrix.shape
    for row in rounded:
        assert len(row[:128].unique()) <= 8
    assert float((rounded - matrix).norm() / matrix.norm()) < 0.25


def test_the_smallest_of_each_row_go():
    matrix = torch.tensor([[1.0, -4.0, 2.0, 3.0], [0.5, 0.1, -0.2, 9.0]])
    expected = torch.tensor([[0.0, -4.0, 0.0, 3.0], [0.5, 0.0, 0.0, 9.0]])
    torch.testing.assert_close(remove_smallest(matrix, 0.5), expected)


def test_rates_weigh_what_rounds_and_what_is_removed():
    dense = FORMATS.get("dense4").spec(group_size=128, pattern=Pattern())
    sparse = FORMATS.get("bitmask16").spec(group_size=0, pattern=Pattern(sparsity=0.5))
    both = FORMATS.get("bitmask4").spec(group_size=128, pattern=Pattern(sparsity=0.5))
    only_pruning, only_rounding = Rates(rounding=0, pruning=1), Rates(rounding=1, pruning=0)
    assert only_pruning.loss(dense) == 0.0
    assert only_rounding.loss(sparse) == 0.0
    assert only_pruning.loss(both) == only_pruning.loss(sparse) > 0.05
    assert 0 < only_rounding.loss(both) < 2 * only_rounding.loss(dense)
    assert alike(10).loss(None) == 0.0
