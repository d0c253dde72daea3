"""Asymmetric codes and tables: every way to compute against the decoded weights."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_kernels import activations, reference
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.activations import Activations

from edgesparse.packed import FORMATS, scheme_bits

STORED = [
    (name, scheme)
    for name in sorted(FORMATS)
    if name.startswith(("dense", "bitmask"))
    for scheme in ("asymmetric", "table")
    if FORMATS.get(name).bits in scheme_bits(scheme)
]
SHAPES = [(1, 1), (15, 127), (17, 129), (130, 70), (2, 65_700), (0, 5), (5, 0)]
ASYMMETRIC = [name for name, scheme in STORED if scheme == "asymmetric"]


def assert_product(found, x, weights):
    """Equal up to the order of a float32 summation: a bound, not a guess."""
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    assert np.all(np.abs(found - exact) <= 2.0**-23 * (weights.shape[1] + 4) * magnitude)


@pytest.mark.parametrize(("name", "scheme"), STORED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [7, 32, 128])
def test_decode_is_exact(make_matrix, name, scheme, shape, group_size):
    matrix, weights = make_matrix(
        name, *shape, group_size=group_size, scheme=scheme, table_rows=group_size
    )
    out = np.full(shape, np.nan, np.float32)
    kernels.decode(matrix, out=out)
    assert np.array_equal(out, weights)
    assert np.array_equal(reference.decode(matrix), weights)


@pytest.mark.parametrize(("name", "scheme"), STORED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_product(make_matrix, name, scheme, shape, batch):
    matrix, weights = make_matrix(name, *shape, scheme=scheme)
    x = np.random.default_rng(1).standard_normal((batch, shape[1])).astype(np.float32)
    out = np.full((batch, shape[0]), np.nan, np.float32)
    kernels.matmul(x, matrix, out=out)
    assert_product(out, x, weights)


@pytest.mark.parametrize(("name", "scheme"), STORED)
def test_rows_by_index(make_matrix, name, scheme):
    matrix, weights = make_matrix(name, 40, 72, scheme=scheme, table_rows=10)
    rows = np.array([39, 0, 16, 15, 0], np.int64)
    out = np.empty((5, 72), np.float32)
    kernels.embedding(rows, matrix, out=out)
    assert np.array_equal(out, weights[rows])


@pytest.mark.parametrize(("name", "scheme"), [("bitmask3", "table"), ("dense4", "asymmetric")])
def test_threads_change_nothing(make_matrix, name, scheme):
    matrix, weights = make_matrix(name, 90, 200, scheme=scheme)
    x = np.random.default_rng(1).standard_normal((2, 200)).astype(np.float32)
    one, two = np.empty((2, 90), np.float32), np.empty((2, 90), np.float32)
    kernels.matmul(x, matrix, out=one)
    kernels.matmul(x, matrix, out=two, threads=2)
    assert np.array_equal(one, two)
    decoded = np.empty((90, 200), np.float32)
    kernels.decode(matrix, out=decoded, threads=2)
    assert np.array_equal(decoded, weights)


@pytest.mark.parametrize("name", ASYMMETRIC)
@pytest.mark.parametrize("kind", [Activations.INT8, Activations.INT16])
@pytest.mark.parametrize(("shape", "group_size"), [((33, 200), 32), ((5, 130), 4), ((16, 64), 64)])
def test_integer_activations(make_matrix, name, kind, shape, group_size):
    """The integers are those of code - zero: exactly the weights, if x is exact digits."""
    matrix, weights = make_matrix(name, *shape, group_size=group_size, scheme="asymmetric")
    # Whole numbers up to the range, which is reached in every group: digits are exact.
    limit = int(kind.range)
    x = np.random.default_rng(2).integers(-limit, limit + 1, (2, shape[1])).astype(np.float32)
    x[:, ::group_size] = limit
    out = np.empty((2, shape[0]), np.float32)
    kernels.matmul(x, matrix, out=out, kind=kind)
    assert_product(out, x, weights)
    assert np.array_equal(out, activations.matmul(x, matrix, kind))


@pytest.mark.parametrize("kind", [Activations.INT8, Activations.INT16])
def test_tables_take_float_activations_only(make_matrix, kind):
    matrix, _ = make_matrix("bitmask4", 16, 64, scheme="table")
    assert not activations.supports(matrix, kind)
    with pytest.raises(ValueError, match="use FLOAT32"):
        kernels.matmul(
            np.zeros((1, 64), np.float32), matrix, out=np.zeros((1, 16), np.float32), kind=kind
        )
