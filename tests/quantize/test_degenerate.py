"""Inputs that say nothing, or too little: every quantizer has a defined result, masked or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edgesparse.calibrate import Statistics
from edgesparse.quantize import QUANTIZERS
from edgesparse.quantize.grid import Grid

COLUMNS = 40
Case = tuple[Tensor, Tensor]


def weight(rows: int = 12, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def hessian(samples: int) -> Tensor:
    X = torch.randn(samples, COLUMNS, generator=torch.Generator().manual_seed(1))
    return X.T @ X


def half_dead() -> Case:
    """Every second input column is always 0."""
    H = hessian(200)
    H[::2], H[:, ::2] = 0, 0
    return weight(), H


def all_dead() -> Case:
    """Every input is 0."""
    return weight(), torch.zeros(COLUMNS, COLUMNS)


def one_sample() -> Case:
    """A Hessian of rank 1."""
    return weight(), hessian(1)


def huge() -> Case:
    """Inputs of nine orders of magnitude."""
    power = torch.logspace(-4, 5, COLUMNS)
    return weight(), hessian(200) * power * power[:, None]


def zero_rows() -> Case:
    """Half of the rows are 0."""
    W = weight()
    W[::2] = 0
    return W, hessian(200)


def one_column() -> Case:
    """A weight of one column."""
    return weight(columns=1), torch.ones(1, 1)


CASES = [half_dead, all_dead, one_sample, huge, zero_rows, one_column]


@pytest.mark.parametrize("masked", ["all kept", "half kept", "a row and a column removed"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_codes_are_finite_and_no_worse_than_nothing(
    name: str, case: Callable[[], Case], bits: int, masked: str
) -> None:
    W, H = case()
    mask = None
    if masked == "half kept":
        mask = torch.rand(W.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    elif masked == "a row and a column removed":
        mask = torch.ones_like(W, dtype=torch.bool)
        mask[0], mask[:, -1] = False, False
    data = Statistics(columns=W.shape[1], samples=1, hessian=H)
    codes = QUANTIZERS.get(name).quantize(W, data, Grid(bits=bits, group_size=16), mask)
    decoded = torch.from_numpy(codes.decode())
    assert torch.isfinite(decoded).all()
    assert not decoded[~W.any(1)].any()
    if mask is not None:
        assert not decoded[~mask].any()
    if bits >= 4 and mask is None:
        assert data.output_error(W, decoded) < 0.1
    if not mask_removes_everything(mask):
        assert np.all(codes.scales > 0)


def mask_removes_everything(mask: Tensor | None) -> bool:
    return mask is not None and not bool(mask.any())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_columns_no_input_reaches_are_rounded_as_they_are(bits: int) -> None:
    W, H = half_dead()
    data = Statistics(columns=COLUMNS, samples=200, hessian=H)
    codes = QUANTIZERS.get("gptq").quantize(W, data, Grid(bits=bits, group_size=8), None)
    decoded = torch.from_numpy(codes.decode())[:, ::2]
    steps = torch.from_numpy(codes.scales).float().repeat_interleave(8, 1)[:, ::2]
    low, high = -(2 ** (bits - 1)) * steps, (2 ** (bits - 1) - 1) * steps
    wanted = W[:, ::2].clamp(low, high)
    assert ((decoded - wanted).abs() <= 0.5 * steps + 1e-5).all()
