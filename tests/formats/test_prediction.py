"""Bytes predicted from shape and pattern alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgesparse.formats.prediction import expected_codes
from edgesparse.packed import FORMATS, Codes
from edgesparse.pattern import Pattern


def random_mask(shape, pattern, rng):
    rows, columns = shape
    if pattern.n_of_m:
        keep, of = pattern.n_of_m
        order = rng.random((rows, columns // of, of)).argsort(axis=2)
        return (order < keep).reshape(shape)
    height, width = pattern.block
    kept = rng.random((-(-rows // height), -(-columns // width))) >= pattern.sparsity
    return kept.repeat(height, 0).repeat(width, 1)[:rows, :columns]


@pytest.mark.parametrize(
    ("text", "sparsity"),
    [("unstructured", 0.5), ("unstructured", 0.9), ("2:4", 0.5), ("2:8", 0.75), ("16:64", 0.75),
     ("3:12", 0.75), ("16x1", 0.5), ("4x4", 0.5), ("1x16", 0.7), ("16x8", 0.5), ("32x1", 0.5)],
)  # fmt: skip
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_prediction_is_the_mean_over_random_masks(text, sparsity, bits):
    shape = (96, 768)
    pattern = Pattern.parse(text, sparsity=sparsity)
    layout = FORMATS.get(f"bitmask{bits}")
    spec = layout.spec(group_size=0 if bits == 16 else 128, pattern=pattern)
    rng = np.random.default_rng(1)
    sizes = [layout.nbytes(spec, random_mask(shape, pattern, rng)) for _ in range(60)]
    predicted = sum(layout.predict_nbytes(spec, shape).values())
    standard_error = np.std(sizes) / np.sqrt(len(sizes))
    # 0.2 %: normal instead of binomial moments, and whole cache lines.
    assert abs(np.mean(sizes) - predicted) < 4 * standard_error + 0.002 * predicted


def test_two_of_four_has_no_padding_and_is_exact():
    assert expected_codes(32, 256, 2, Pattern(keep=2, of=4)) == 32 * 256 / 2 / 2


def test_half_random_costs_a_little_more_than_half():
    # Two streams of 16 * 512 / 2 weights a tile: mean 2048 codes, deviation 32, and the larger of
    # two normal lengths exceeds the mean by deviation / sqrt(pi).
    expected = 2048 + np.sqrt(4096 / 4) / np.sqrt(np.pi)
    assert expected_codes(16, 512, 2, Pattern(sparsity=0.5)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("shape", [(0, 10), (10, 0), (1, 1), (17, 3)])
def test_small_shapes(shape):
    layout = FORMATS.get("bitmask4")
    spec = layout.spec(group_size=32, pattern=Pattern(sparsity=0.5))
    assert all(size % 64 == 0 for size in layout.predict_nbytes(spec, shape).values())


def test_dense_prediction_is_exact(make_codes):
    codes: Codes = make_codes((50, 300), bits=3, sparsity=0.0)
    layout = FORMATS.get("dense3")
    packed = layout.pack(codes, pattern=Pattern())
    predicted = layout.predict_nbytes(packed.spec, codes.shape)
    assert predicted == {name: buffer.nbytes for name, buffer in packed.buffers.items()}
