"""What every registered layout keeps: codes come back, and sizes are as stated."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesparse.errors import FormatError
from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, Codes, Format, matrix_shape
from edgesparse.pattern import DENSE, Pattern

HALF = Pattern(sparsity=0.5)
ODD_SHAPES = [
    (1, 1), (15, 127), (16, 128), (17, 129), (33, 5), (7,), (5, 3, 3, 3), (0, 4), (4, 0),
    (2, 65_600),
]  # fmt: skip


UNSTRUCTURED = sorted(name for name in FORMATS if name.startswith(("dense", "bitmask")))


@pytest.fixture(params=UNSTRUCTURED)
def layout(request: pytest.FixtureRequest) -> Format:
    return FORMATS.get(request.param)


def codes_for(layout: Format, make_codes, shape, **options) -> Codes:
    sparsity = 0.0 if layout.name.startswith("dense") else 0.5
    return make_codes(shape, bits=layout.bits, **{"sparsity": sparsity, **options})


def assert_same(found: Codes, expected: Codes) -> None:
    assert np.array_equal(found.values, expected.values)
    assert np.array_equal(found.keep_mask, expected.keep_mask)
    assert np.array_equal(found.scales, expected.scales)
    assert (found.bits, found.group_size) == (expected.bits, expected.group_size)


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_codes_come_back(layout, make_codes, shape):
    codes = codes_for(layout, make_codes, shape)
    packed = layout.pack(codes, pattern=HALF)
    assert_same(layout.unpack(packed), codes)
    assert packed.shape == shape
    assert np.array_equal(packed.decode(), codes.decode())


@pytest.mark.parametrize("size", range(1, 66))
def test_every_small_size(layout, make_codes, size):
    codes = codes_for(layout, make_codes, (size, 131 - size), group_size=24, seed=size)
    assert_same(layout.unpack(layout.pack(codes, pattern=HALF)), codes)


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_nbytes_is_exact(layout, make_codes, shape):
    codes = codes_for(layout, make_codes, shape)
    packed = layout.pack(codes, pattern=HALF)
    assert layout.nbytes(packed.spec, codes.keep_mask) == packed.nbytes


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_buffers_are_whole_cache_lines_in_the_predicted_order(layout, make_codes, shape):
    packed = layout.pack(codes_for(layout, make_codes, shape), pattern=HALF)
    assert list(packed.buffers) == list(layout.predict_nbytes(packed.spec, shape))
    for buffer in packed.buffers.values():
        assert buffer.nbytes % 64 == 0
        assert not buffer.flags.writeable


@pytest.mark.parametrize("group_size", [1, 3, 20, 128, 10_000])
def test_kernels_see_the_same_weights(layout, make_codes, group_size):
    codes = codes_for(layout, make_codes, (37, 300), group_size=group_size)
    matrix = open_matrix(layout.pack(codes, pattern=HALF))
    assert np.array_equal(reference.decode(matrix), codes.decode())


def test_other_bits_are_refused(layout, make_codes):
    other = 8 if layout.bits != 8 else 4
    with pytest.raises(FormatError, match=f"stores {layout.bits}"):
        layout.pack(make_codes((4, 4), bits=other), pattern=HALF)


def test_another_version_is_refused(layout, make_codes):
    packed = layout.pack(codes_for(layout, make_codes, (4, 40)), pattern=HALF)
    object.__setattr__(packed.spec, "version", 99)
    with pytest.raises(FormatError, match="version 99"):
        layout.unpack(packed)


@st.composite
def weights(draw: st.DrawFn) -> tuple[Codes, str]:
    bits = draw(st.sampled_from([2, 3, 4, 8, 16]))
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
    rows, columns = matrix_shape(shape)
    group_size = 0 if bits == 16 else draw(st.integers(1, 140))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keep = rng.random(shape) < draw(st.floats(0, 1))
    limit = 2 ** (bits - 1)
    values = (
        np.where(keep, rng.standard_normal(shape), 0).astype(np.float16)
        if bits == 16
        else (rng.integers(-limit, limit, shape) * keep).astype(np.int8)
    )
    groups = -(-columns // group_size) if group_size else 0
    scales = rng.uniform(1e-4, 10, (rows, groups)).astype(np.float16)
    codes = Codes(values=values, scales=scales, keep_mask=keep, bits=bits, group_size=group_size)
    return codes, f"bitmask{bits}"


@given(weights())
@settings(max_examples=150, deadline=None)
def test_any_mask_comes_back(example):
    codes, name = example
    layout = FORMATS.get(name)
    packed = layout.pack(codes, pattern=DENSE)
    assert_same(layout.unpack(packed), codes)
    assert layout.nbytes(packed.spec, codes.keep_mask) == packed.nbytes


@given(weights())
@settings(max_examples=100, deadline=None)
def test_dense_keeps_the_values_of_any_mask(example):
    codes, _ = example
    if codes.bits == 16:
        return
    packed = FORMATS.get(f"dense{codes.bits}").pack(codes, pattern=DENSE)
    assert np.array_equal(packed.decode(), codes.decode())
    assert packed.codes.keep_mask.all()
