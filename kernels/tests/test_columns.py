"""Products that skip columns: the bits of int8 products of activations with small ones zeroed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgesparse_kernels import _isa, activations, columns
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.columns import by_column, matvec


@pytest.fixture(params=["generic", "avx2", "avx512", "amx"])
def isa(request, monkeypatch) -> str:
    if request.param not in {isa.name for isa in _isa.available()}:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("EDGESPARSE_ISA", request.param)
    return request.param


def product(matrix, x, threshold):
    out = np.full(matrix.rows, np.nan, np.float32)
    matvec(x, by_column(matrix), threshold=threshold, out=out)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (130, 70), (128, 128), (300, 257), (3, 65_700)])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 9.0])
def test_the_bits_of_what_is_left(isa, make_matrix, shape, threshold):
    matrix, _ = make_matrix("bitmask4", *shape, group_size=64)
    x = np.random.default_rng(0).standard_normal(shape[1]).astype(np.float32)
    kept = np.where(np.abs(x) < threshold, np.float32(0), x)
    expected = activations.matmul(kept[None], matrix, Activations.INT8)[0]
    assert np.array_equal(product(matrix, x, threshold), expected)


@pytest.mark.parametrize("code", [-8, 7])
def test_the_largest_sums(isa, make_matrix, code):
    """Every weight and every digit as far from 0 as there are."""
    matrix, _ = make_matrix("dense4", 130, 700, group_size=704)
    matrix = replace(matrix, codes=np.full_like(matrix.codes, 0x11 * (code & 15)))
    for x in (np.ones(700, np.float32), -np.ones(700, np.float32)):
        expected = activations.matmul(x[None], matrix, Activations.INT8)[0]
        assert np.array_equal(product(matrix, x, 0.0), expected)


def test_without_a_compiler(make_matrix, monkeypatch):
    matrix, _ = make_matrix("bitmask4", 130, 70, group_size=64)
    x = np.random.default_rng(0).standard_normal(70).astype(np.float32)
    compiled = product(matrix, x, threshold=0.5)
    monkeypatch.setattr(columns, "is_enabled", lambda: False)
    assert np.array_equal(product(matrix, x, threshold=0.5), compiled)


def test_nothing_kept_is_nothing(make_matrix):
    matrix, _ = make_matrix("dense4", 20, 40)
    assert not product(matrix, np.ones(40, np.float32), threshold=2.0).any()


def test_a_value_that_is_not_finite_shows(make_matrix):
    matrix, _ = make_matrix("dense4", 20, 40)
    x = np.zeros(40, np.float32)
    x[3] = np.nan
    assert np.isnan(product(matrix, x, threshold=2.0)).all()


def test_other_codes_are_refused(make_matrix):
    matrix, _ = make_matrix("dense3", 16, 32)
    with pytest.raises(ValueError, match="found 3 bits"):
        by_column(matrix)
