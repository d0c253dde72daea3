"""Structured masks: decoding, and integer products to the bit, with and without vector kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgesparse_kernels import activations, reference
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.activations import Activations

CASES = [
    ("nm4", "2:4", 0.5), ("n64", "16:64", 0.75), ("n64", "8:64", 0.875), ("n64", "56:64", 0.125),
    ("column16", "16x1", 0.5), ("column16", "16x1", 0.95), ("block16x8", "16x8", 0.5),
    ("block16x8", "32x16", 0.95),
]  # fmt: skip
SHAPES = [(1, 1), (17, 129), (33, 5), (64, 300), (40, 1000), (3, 65_700)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def case(request):
    return request.param


@pytest.fixture(params=["generic", "avx2", "avx512", "amx"])
def isa(request, monkeypatch):
    from edgesparse_kernels import _isa

    if request.param not in {isa.name for isa in _isa.available()}:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("EDGESPARSE_ISA", request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [20, 128, 256, 100_000])
def test_products(isa, make_structured, case, shape, group_size):
    matrix, weights = make_structured(*case, shape, group_size=group_size)
    assert np.array_equal(reference.decode(matrix), weights)
    for batch in (1, 3, 20):
        x = np.random.default_rng(1).standard_normal((batch, shape[1])).astype(np.float32)
        out = np.full((batch, shape[0]), np.nan, np.float32)
        for kind in (Activations.INT8, Activations.INT16):
            if not activations.supports(matrix, kind):
                continue
            kernels.matmul(x, matrix, out=out, kind=kind)
            assert np.array_equal(out, activations.matmul(x, matrix, kind))
        decoded = np.empty(shape, np.float32)
        kernels.decode(matrix, out=decoded)
        assert np.array_equal(decoded, weights)
        kernels.matmul(x, matrix, out=out)
        assert np.allclose(out, x.astype(np.float64) @ weights.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("code", [-8, 7])
def test_the_largest_sums(isa, make_structured, case, code):
    """Every weight and every digit as far from 0 as there are, in both planes."""
    matrix, _ = make_structured(*case, (33, 700), group_size=100_000)
    matrix = replace(matrix, codes=np.full_like(matrix.codes, 0x11 * (code & 15)))
    x = np.full((1, 700), 32384, np.float32)  # 256 * 127 - 128
    x[0, 0] = 32512  # the scale is 1, in 16 bits
    out = np.empty((1, 33), np.float32)
    for sign in (1, -1):
        for kind in (Activations.INT8, Activations.INT16):
            kernels.matmul(sign * x, matrix, out=out, kind=kind)
            assert np.array_equal(out, activations.matmul(sign * x, matrix, kind))


def test_every_set_with_gathers_has_the_same_kernels():
    from edgesparse_kernels import _isa
    from edgesparse_kernels.gather import GROUPS

    assert set(GROUPS) == {_isa.AVX512.name, _isa.AVX2.name}
    kernels_of = {
        name: {each for each in vars(module) if each.endswith(("_group", "_pack"))}
        for name, module in GROUPS.items()
    }
    assert kernels_of["avx2"] == kernels_of["avx512"]
    assert "nm4_group" in kernels_of["avx2"]


def test_rows_and_threads(make_structured, case):
    matrix, weights = make_structured(*case, (70, 300), group_size=128)
    rows = np.array([69, 0, 16], np.int64)
    out = np.empty((3, 300), np.float32)
    kernels.embedding(rows, matrix, out=out)
    assert np.array_equal(out, weights[rows])
    x = np.random.default_rng(1).standard_normal((1, 300)).astype(np.float32)
    one, two = np.empty((1, 70), np.float32), np.empty((1, 70), np.float32)
    kernels.matmul(x, matrix, out=one, kind=Activations.INT8)
    kernels.matmul(x, matrix, out=two, kind=Activations.INT8, threads=2)
    assert np.array_equal(one, two)
