"""Codes of value 0 leave the mask where that is free and saves bytes; the weight is the same."""

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.dropping import without_zeros
from edgesparse.packed import FORMATS, Codes
from edgesparse.pattern import Pattern

HALF = Pattern(sparsity=0.5)


def made(bits=4, rows=64, columns=256, zeros=None, seed=0):
    rng = np.random.default_rng(seed)
    keep = rng.random((rows, columns)) >= 0.5
    values = (rng.integers(-2, 2, keep.shape) * keep).astype(np.int8)
    return Codes(
        values=values, scales=np.ones((rows, 1), np.float16), keep_mask=keep, bits=bits,
        group_size=columns, zeros=zeros,
    )  # fmt: skip


def spec_of(codes, pattern=HALF, layout="bitmask"):
    return FORMATS.get(f"{layout}{codes.bits}").spec(
        group_size=codes.group_size, pattern=pattern, scheme=codes.scheme
    )


@pytest.mark.parametrize("zero", [None, 1])
def test_zeros_leave_the_mask_and_nothing_else_changes(zero):
    codes = made(zeros=None if zero is None else np.full((64, 1), zero, np.int8))
    fewer, dropped = without_zeros(codes, spec_of(codes))
    expected = (codes.values == (zero or 0)) & codes.keep_mask
    assert dropped == expected.sum() > 0
    assert np.array_equal(fewer.keep_mask, codes.keep_mask & ~expected)
    assert np.array_equal(fewer.decode(), codes.decode())
    layout = FORMATS.get("bitmask4")
    assert layout.pack(fewer, pattern=HALF).nbytes < layout.pack(codes, pattern=HALF).nbytes


@pytest.mark.parametrize(
    ("pattern", "layout"),
    [(Pattern.parse("2:4"), "bitmask"), (Pattern.parse("16x1", sparsity=0.5), "bitmask"),
     (HALF, "dense"), (Pattern(), "bitmask")],
)  # fmt: skip
def test_a_mask_with_a_structure_stays(pattern, layout):
    codes = made()
    assert without_zeros(codes, spec_of(codes, pattern, layout)) == (codes, 0)


def test_nothing_changes_where_nothing_is_saved():
    codes = made(rows=2, columns=8)  # its few codes fill one block of 64 bytes either way
    assert without_zeros(codes, spec_of(codes)) == (codes, 0)


def test_compress_says_how_many():
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128)
    model = es.load(layer, example_inputs={"input": torch.randn(4, 256)})
    rule = es.Rule(bits=2, pattern=Pattern(sparsity=0.75), method="magnitude", quantizer="rtn")
    small = es.compress(model, es.plan(model, es.Recipe((rule,))))
    (packed,) = small.packed.values()
    assert packed.codes.keep_mask.mean() <= 0.25
    assert (packed.decode()[packed.codes.keep_mask] != 0).all()
    kept = int(packed.codes.keep_mask.sum())
    assert small.metadata["dropped_zero_codes"] == 128 * 64 - kept
