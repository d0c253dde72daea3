"""Inputs that say nothing, or too little: every method and pattern has a defined result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgesparse.calibrate import Statistics
from edgesparse.pattern import Pattern
from edgesparse.prune import PRUNERS, JointPruner, Pruned
from edgesparse.quantize.grid import Grid

ROWS, COLUMNS = 20, 48
METHODS = ["magnitude", "wanda", "sparsegpt", "admm"]
PATTERNS = [
    Pattern(sparsity=0.5), Pattern(sparsity=0.9), Pattern(keep=2, of=4), Pattern(keep=5, of=12),
    Pattern(keep=16, of=64), Pattern(sparsity=0.5, block=(1, 16)),
    Pattern(sparsity=0.5, block=(4, 4)), Pattern(sparsity=0.5, block=(16, 1)),
]  # fmt: skip
Case = tuple[Tensor, Tensor]


def weight() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def inputs(samples: int = 200) -> Tensor:
    return torch.randn(samples, COLUMNS, generator=torch.Generator().manual_seed(1))


def half_dead() -> Case:
    """Every second input column is always 0."""
    X = inputs()
    X[:, ::2] = 0
    return weight(), X.T @ X


def all_dead() -> Case:
    """Every input is 0."""
    return weight(), torch.zeros(COLUMNS, COLUMNS)


def rank_one() -> Case:
    """All samples are multiples of one."""
    x = inputs(1)[0]
    return weight(), 1e4 * torch.outer(x, x)


def one_sample() -> Case:
    """A single sample, most of it 0."""
    x = inputs(1)[0]
    x[5:] = 0
    return weight(), torch.outer(x, x)


def equal_columns() -> Case:
    """All input columns are the same one."""
    return weight(), torch.full((COLUMNS, COLUMNS), 7.0)


def tiny() -> Case:
    """Inputs whose squares are near the smallest normal number."""
    X = inputs() * 1e-18
    return weight(), X.T @ X


def huge() -> Case:
    """Inputs of nine orders of magnitude."""
    X = inputs() * torch.logspace(-4, 5, COLUMNS)
    return weight(), X.T @ X


def zero_rows() -> Case:
    """Rows of zeros, one of them alone among others."""
    W, X = weight(), inputs()
    W[3], W[10:] = 0, 0
    return W, X.T @ X


def zero_weight() -> Case:
    """Nothing to keep."""
    X = inputs()
    return torch.zeros(ROWS, COLUMNS), X.T @ X


def one_column() -> Case:
    """A weight of one column."""
    return weight()[:, :1], torch.full((1, 1), 3.0)


def one_row() -> Case:
    """A weight of one row."""
    X = inputs()
    return weight()[:1], X.T @ X


CASES = [
    half_dead, all_dead, rank_one, one_sample, equal_columns, tiny, huge, zero_rows, zero_weight,
    one_column, one_row,
]  # fmt: skip


def statistics(H: Tensor) -> Statistics:
    return Statistics(columns=len(H), samples=1, hessian=H)


def pruned(method: str, case: Callable[[], Case], pattern: Pattern) -> tuple[Pruned, Tensor]:
    W, H = case()
    return PRUNERS.get(method).prune(W, statistics(H), pattern), W


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_finite_on_the_pattern_and_no_worse_than_nothing(
    method: str, case: Callable[[], Case], pattern: Pattern
) -> None:
    found, W = pruned(method, case, pattern)
    assert torch.isfinite(found.weight).all()
    assert not found.weight[~found.keep_mask].any()
    if pattern.n_of_m:
        keep, of = pattern.n_of_m
        for start in range(0, W.shape[1], of):
            kept = found.keep_mask[:, start : start + of].sum(1)
            assert (kept == min(keep, W.shape[1] - start)).all()
    else:
        assert 1 - float(found.keep_mask.float().mean()) <= pattern.sparsity + 1e-6
    data = statistics(case()[1])
    assert data.output_error(W, found.weight) <= 1 + 1e-4


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_rows_of_zeros_stay_zero(method: str, pattern: Pattern) -> None:
    found, W = pruned(method, zero_rows, pattern)
    assert not found.weight[~W.any(1)].any()


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.block == (1, 1)], ids=str)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
def test_columns_that_no_input_reaches_go_first(method: str, pattern: Pattern) -> None:
    found, _ = pruned(method, half_dead, pattern)
    dead, live = found.keep_mask[:, ::2], found.keep_mask[:, 1::2]
    kept = int(found.keep_mask.sum())
    assert int(live.sum()) >= min(kept, live.numel()) * (0.99 if pattern.n_of_m is None else 0.5)
    if pattern in (Pattern(sparsity=0.5), Pattern(keep=2, of=4)):
        assert not dead.any()


@pytest.mark.parametrize("method", METHODS)
def test_without_inputs_wanda_and_the_hessian_methods_go_by_magnitude(method: str) -> None:
    W, pattern = weight(), Pattern(keep=2, of=4)
    nothing = Statistics(columns=COLUMNS)
    found = PRUNERS.get(method).prune(W, nothing, pattern)
    wanted = PRUNERS.get("magnitude").prune(W, nothing, pattern)
    assert torch.equal(found.keep_mask, wanted.keep_mask)
    torch.testing.assert_close(found.weight, wanted.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_codes_found_with_the_mask_are_finite_and_on_it(
    case: Callable[[], Case], pattern: Pattern, bits: int
) -> None:
    W, H = case()
    joint = PRUNERS.get("sparsegpt")
    assert isinstance(joint, JointPruner)
    codes = joint.prune_to_codes(W, statistics(H), pattern, Grid(bits=bits, group_size=16))
    assert not codes.values[~codes.keep_mask].any()
    assert torch.isfinite(torch.from_numpy(codes.decode())).all()
