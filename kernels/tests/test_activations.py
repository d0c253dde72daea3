"""Integer activations: the same bits from NumPy, and from numba on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_kernels import _isa, activations
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.matrix import PackedMatrix

INTEGERS = (Activations.INT8, Activations.INT16)
NAMES = ["dense2", "dense3", "dense4", "dense8", "bitmask2", "bitmask3", "bitmask4", "bitmask8"]


@pytest.fixture(params=["generic", "avx2", "avx512", "amx"])
def isa(request, monkeypatch) -> str:
    if request.param not in {isa.name for isa in _isa.available()}:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("EDGESPARSE_ISA", request.param)
    return request.param


def draw(shape, seed=0):
    return 3 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(x, matrix, kind, threads=1):
    out = np.full((len(x), matrix.rows), np.nan, np.float32)
    kernels.matmul(x, matrix, out=out, kind=kind, threads=threads)
    return out


def test_digits_by_hand():
    x = np.array([[127.0, -63.5, 0.4, 0.0, 2.0, -4.0]], np.float32)
    int8 = activations.quantize(x, 4, Activations.INT8)
    assert int8.scales.tolist() == [[1.0, np.float32(4) / np.float32(127)]]
    assert int8.planes.tolist() == [[[127, -64, 0, 0, 64, -127]]]  # -63.5 to even, 63.5 too
    int16 = activations.quantize(x, 4, Activations.INT16)
    value = 256 * int16.planes[0] + int16.planes[1]
    assert value[0, 0] == 32512
    assert np.abs(int16.planes[1]).max() <= 128
    scales = np.repeat(int16.scales, 4, axis=1)[:, :6]
    assert np.allclose(value * scales, x, atol=1.001 * scales.max() / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((1, 1), 8), ((17, 129), 32), ((33, 600), 128), ((70, 300), 1000), ((40, 200), 24)],
)
def test_the_same_bits_everywhere(isa, make_matrix, name, shape, group_size):
    matrix, weights = make_matrix(name, *shape, group_size=group_size)
    decoded = np.full(shape, np.nan, np.float32)
    kernels.decode(matrix, out=decoded)
    assert np.array_equal(decoded, weights)
    for batch in (1, 2, 5):
        x = draw((batch, shape[1]))
        for kind in INTEGERS:
            assert np.array_equal(product(x, matrix, kind), activations.matmul(x, matrix, kind))
        exact = x.astype(np.float64) @ weights.astype(np.float64).T
        magnitude = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
        error = np.abs(product(x, matrix, Activations.FLOAT32) - exact)
        assert np.all(error <= 2.0**-22 * (shape[1] + 4) * magnitude)


@pytest.mark.parametrize("name", ["dense2", "dense8", "bitmask3", "bitmask4"])
@pytest.mark.parametrize("group_size", [32, 64, 128, 1000])
def test_rows_in_sixteens_and_what_is_left(isa, make_matrix, name, group_size):
    """Matrix tiles take sixteen rows by 64 columns; other rows and columns go on beside them."""
    matrix, _ = make_matrix(name, 37, 328, group_size=group_size)
    for batch in (15, 16, 35):
        x = draw((batch, 328))
        for kind in INTEGERS:
            assert np.array_equal(product(x, matrix, kind), activations.matmul(x, matrix, kind))


def test_more_than_65536_columns(isa, make_matrix):
    for name in ("dense4", "bitmask4"):
        matrix, _ = make_matrix(name, 3, 65_700, group_size=128)
        x = draw((1, 65_700))
        for kind in INTEGERS:
            assert np.array_equal(product(x, matrix, kind), activations.matmul(x, matrix, kind))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9, 0.99, 1.0])
def test_every_sparsity(isa, make_matrix, sparsity):
    matrix, _ = make_matrix("bitmask4", 50, 300, sparsity=sparsity)
    x = draw((1, 300))
    for kind in INTEGERS:
        assert np.array_equal(product(x, matrix, kind), activations.matmul(x, matrix, kind))


@pytest.mark.parametrize("batch", [1, 16, 65])
def test_threads_and_batches_change_nothing(make_matrix, batch):
    matrix, _ = make_matrix("bitmask4", 150, 300)
    x = draw((batch, 300))
    for kind in Activations:
        alone = np.concatenate([product(row[None], matrix, kind) for row in x])
        assert np.array_equal(product(x, matrix, kind), product(x, matrix, kind, threads=2))
        if kind is not Activations.FLOAT32:
            assert np.array_equal(product(x, matrix, kind), alone)


def test_the_threads_of_other_code_are_as_they_were(make_matrix):
    import numba

    matrix, _ = make_matrix("dense4", 64, 128)
    before = numba.get_num_threads()
    for threads in (1, 2, 64):  # more than there may be: as many as there are share the tiles
        assert np.array_equal(
            product(draw((1, 128)), matrix, Activations.INT8, threads=threads),
            product(draw((1, 128)), matrix, Activations.INT8),
        )
        assert numba.get_num_threads() == before


def test_nothing_is_left_of_the_call_before(isa, make_matrix):
    """Room to work in is kept: neither longer rows nor values where now are zeros may show."""
    x = draw((1, 128))
    longer, _ = make_matrix("dense4", 16, 128)
    for kind in INTEGERS:
        product(x, longer, kind)
        shorter, _ = make_matrix("dense4", 16, 70)
        part = np.where(np.arange(70) < 32, 0, x[:, :70]).astype(np.float32)
        assert np.array_equal(product(part, shorter, kind), activations.matmul(part, shorter, kind))


@pytest.mark.parametrize("nibble", [0x7, 0x8])
@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("columns", [256, 384, 40])
def test_sums_of_extremes_fit(isa, nibble, is_dense, columns):
    """Digits of -128 by codes that are 15 or 0 when read as unsigned, for whole groups."""
    width = -(-columns // 128) * 128
    mask = np.full(width // 4, 2**64 - 1, np.uint64)
    offsets = np.array([0, 8 * width], np.uint32)
    matrix = PackedMatrix(
        rows=16, columns=columns, bits=4, group_size=128,
        codes=np.full(8 * width + 64, 17 * nibble, np.uint8),
        scales=np.full(16 * width // 128, np.float16(1).view(np.uint16), np.uint16),
        **({} if is_dense else {"mask": mask, "offsets": offsets}),
    )  # fmt: skip
    for batch in (1, 2, 3, 4, 5, 9):
        x = np.full((batch, columns), 128, np.float32)
        x[:, ::128] = 32512  # sets the scale to 1: all others have a high digit of 1, a low of -128
        assert activations.quantize(x, 128, Activations.INT16).planes[1].min() == -128
        for values in (x, -x, np.full_like(x, -1)):
            for kind in INTEGERS:
                exact = activations.matmul(values, matrix, kind)
                assert np.array_equal(product(values, matrix, kind), exact)


def test_sixteen_bits_are_nearly_exact(make_matrix):
    matrix, weights = make_matrix("dense4", 64, 512, group_size=128)
    x = draw((1, 512))
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    error = {
        kind: np.linalg.norm(product(x, matrix, kind) - exact) / np.linalg.norm(exact)
        for kind in INTEGERS
    }
    assert error[Activations.INT16] < 1e-4 < error[Activations.INT8] < 2e-2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_give_nan(isa, make_matrix, value):
    matrix, _ = make_matrix("dense4", 16, 64)
    for column in (5, 63):
        x = draw((1, 64))
        x[0, column] = value
        for kind in INTEGERS:
            assert np.isnan(product(x, matrix, kind)).all()


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e36])
def test_tiny_and_huge_activations(isa, make_matrix, value):
    matrix, _ = make_matrix("dense4", 16, 64)
    x = np.full((1, 64), value, np.float32)
    for kind in INTEGERS:
        assert np.array_equal(product(x, matrix, kind), activations.matmul(x, matrix, kind))


@pytest.mark.parametrize(("name", "group_size"), [("bitmask16", 0), ("bitmask4", 7)])
def test_what_integers_cannot_do_is_refused(make_matrix, name, group_size):
    matrix, _ = make_matrix(name, 20, 50, group_size=group_size)
    with pytest.raises(ValueError, match="use FLOAT32"):
        product(draw((1, 50)), matrix, Activations.INT8)


def test_groups_of_odd_quads_take_the_reference(make_matrix):
    matrix, _ = make_matrix("bitmask4", 20, 50, group_size=12)
    x = draw((2, 50))
    for kind in INTEGERS:
        assert np.array_equal(product(x, matrix, kind), activations.matmul(x, matrix, kind))


def test_an_instruction_set_this_processor_lacks_is_refused(make_matrix, monkeypatch):
    monkeypatch.setenv("EDGESPARSE_ISA", "avx9000")
    matrix, _ = make_matrix("dense4", 16, 64)
    with pytest.raises(ValueError, match="this processor has"):
        product(draw((1, 64)), matrix, Activations.INT8)
