"""A bitmask as dense codes: the same weights, the same products, and when it is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgesparse_kernels import _isa, held, reference
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.activations import Activations


@pytest.fixture(params=["generic", "avx2", "avx512"])
def isa(request, monkeypatch) -> str:
    if request.param not in {isa.name for isa in _isa.available()}:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("EDGESPARSE_ISA", request.param)
    monkeypatch.delenv("EDGESPARSE_IN_PLACE", raising=False)
    monkeypatch.setattr(held, "cache_nbytes", lambda level: 32 * 256 if level == 2 else 0)
    return request.param


@pytest.mark.parametrize("shape", [(1, 1), (17, 129), (33, 600), (3, 65_700)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
def test_the_same_weights_and_products(isa, make_matrix, shape, sparsity):
    matrix, weights = make_matrix("bitmask4", *shape, sparsity=sparsity)
    dense = held.as_dense(matrix)
    assert np.array_equal(dense.codes, held.dense_codes(matrix))
    assert np.array_equal(reference.decode(dense), weights)
    x = np.random.default_rng(1).standard_normal((2, shape[1])).astype(np.float32)
    for kind in (Activations.INT8, Activations.INT16):
        ours, theirs = np.empty((2, 2, shape[0]), np.float32)
        kernels.matmul(x, matrix, out=ours, kind=kind)
        kernels.matmul(x, dense, out=theirs, kind=kind)
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("weights", "in_cache"), [(None, True), (8192, True), (8194, False)])
def test_a_bitmask_is_held_as_dense_codes_in_cache_or_where_nothing_expands_fast(
    isa, make_matrix, weights, in_cache
):
    """Codes of 8192 weights are half of the cache; alone, the matrix has no others beside it."""
    matrix, _ = make_matrix("bitmask4", 32, 256)
    found = held.for_products(matrix, weights=weights)
    assert found.is_dense == (in_cache or isa != "avx512")
    codes = found.codes.nbytes if found.is_dense else matrix.codes.nbytes
    assert found.nbytes == codes + found.scales.nbytes + found.mask.nbytes + found.offsets.nbytes
    if found.is_dense:
        assert found.codes.nbytes == 32 * 256 // 2


def test_in_place_is_asked_for_by_word_or_environment(isa, make_matrix, monkeypatch):
    matrix, _ = make_matrix("bitmask4", 32, 256)
    assert held.for_products(matrix, in_place=True) is matrix
    monkeypatch.setenv("EDGESPARSE_IN_PLACE", "1")
    assert held.for_products(matrix) is matrix


def test_the_cache_is_what_linux_says():
    said = held.cache_nbytes(2)
    assert said == 0 or 1 << 16 <= said <= 1 << 28
    if Path("/sys/devices/system/cpu/cpu0/cache/index2/size").exists():
        assert said > 0


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("dense4", "symmetric"), ("bitmask3", "symmetric"), ("bitmask4", "asymmetric"),
     ("bitmask4", "table")],
)  # fmt: skip
def test_others_stay_as_they_are(isa, make_matrix, name, scheme):
    matrix, _ = make_matrix(name, 32, 256, scheme=scheme)
    assert held.for_products(matrix) is matrix
