"""Every kernel against the decoded weights, over a sweep of shapes, bits, groups and sparsities."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels import reference

from edgesparse.packed import FORMATS

NAMES = sorted(name for name in FORMATS if name.startswith(("dense", "bitmask")))
SHAPES = [(1, 1), (1, 600), (15, 127), (16, 128), (17, 129), (130, 70), (3, 65_700), (0, 5), (5, 0)]


def assert_product(found, x, weights):
    """Equal up to the order of a float32 summation: a bound, not a guess."""
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    assert np.all(np.abs(found - exact) <= 2.0**-23 * (weights.shape[1] + 2) * magnitude)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [7, 128])
def test_decode_is_exact(make_matrix, name, shape, group_size):
    matrix, weights = make_matrix(name, *shape, group_size=group_size)
    out = np.full(shape, np.nan, np.float32)
    kernels.decode(matrix, out=out)
    assert np.array_equal(out, weights)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_product(make_matrix, name, shape, batch):
    matrix, weights = make_matrix(name, *shape)
    x = np.random.default_rng(1).standard_normal((batch, shape[1])).astype(np.float32)
    out = np.full((batch, shape[0]), np.nan, np.float32)
    kernels.matmul(x, matrix, out=out)
    assert_product(out, x, weights)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9, 0.99, 1.0])
def test_every_sparsity(make_matrix, sparsity):
    matrix, weights = make_matrix("bitmask4", 50, 300, sparsity=sparsity)
    x = np.random.default_rng(1).standard_normal((2, 300)).astype(np.float32)
    out = np.empty((2, 50), np.float32)
    kernels.matmul(x, matrix, out=out)
    assert_product(out, x, weights)


@pytest.mark.parametrize("name", ["bitmask3", "dense4"])
def test_threads_change_nothing(make_matrix, name):
    matrix, _ = make_matrix(name, 90, 200)
    x = np.random.default_rng(1).standard_normal((2, 200)).astype(np.float32)
    one, two = np.empty((2, 90), np.float32), np.empty((2, 90), np.float32)
    kernels.matmul(x, matrix, out=one)
    kernels.matmul(x, matrix, out=two, threads=2)
    assert np.array_equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_embedding(make_matrix, name):
    matrix, weights = make_matrix(name, 40, 72)
    rows = np.array([39, 0, 16, 15, 0], np.int64)
    out = np.empty((5, 72), np.float32)
    kernels.embedding(rows, matrix, out=out)
    assert np.array_equal(out, weights[rows])


@pytest.mark.parametrize("row", [-1, 40])
def test_embedding_refuses_other_rows(make_matrix, row):
    matrix, _ = make_matrix("dense4", 40, 72)
    with pytest.raises(IndexError):
        kernels.embedding(np.array([row], np.int64), matrix, out=np.empty((1, 72), np.float32))


@pytest.mark.parametrize(
    ("x", "out"),
    [((1, 71), (1, 40)), ((1, 72), (1, 41)), ((2, 72), (1, 40))],
)
def test_wrong_shapes_are_refused(make_matrix, x, out):
    matrix, _ = make_matrix("dense4", 40, 72)
    with pytest.raises(ValueError, match="expected contiguous float32"):
        kernels.matmul(np.zeros(x, np.float32), matrix, out=np.zeros(out, np.float32))


def test_arrays_are_used_where_they_lie(make_matrix, tmp_path):
    """A memory-mapped, read-only pack computes without a copy."""
    matrix, weights = make_matrix("bitmask4", 33, 100)
    (tmp_path / "codes").write_bytes(matrix.codes.tobytes())
    mapped = np.memmap(tmp_path / "codes", np.uint8, mode="r")
    opened = type(matrix)(
        rows=33, columns=100, bits=4, group_size=32,
        codes=mapped, scales=matrix.scales, mask=matrix.mask, offsets=matrix.offsets,
    )  # fmt: skip
    assert np.shares_memory(opened.codes, mapped)
    out = np.empty((33, 100), np.float32)
    kernels.decode(opened, out=out)
    assert np.array_equal(out, weights)


@pytest.mark.parametrize("name", NAMES)
def test_reference(make_matrix, name):
    matrix, weights = make_matrix(name, 33, 150, group_size=9)
    assert np.array_equal(reference.decode(matrix), weights)


def test_without_a_compiler():
    """NUMBA_DISABLE_JIT=1 takes the NumPy reference, with the same results."""
    code = (
        "import numpy as np\n"
        "from edgesparse_kernels import matmul\n"
        "from edgesparse_kernels.matrix import PackedMatrix\n"
        "codes = np.zeros(1024, np.uint8); codes[0] = 0x7F\n"
        "scales = np.zeros(32, np.uint16); scales[0] = np.float16(0.5).view(np.uint16)\n"
        "m = PackedMatrix(rows=1, columns=8, bits=4, group_size=8, codes=codes, scales=scales)\n"
        "y = np.empty(1, np.float32)\n"
        "matmul.matvec(np.arange(1, 9, dtype=np.float32), m, out=y)\n"
        "print(float(y[0]))\n"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert float(found.stdout) == -1 * 0.5 * 1 + 7 * 0.5 * 5
