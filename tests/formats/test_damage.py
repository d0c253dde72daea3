"""Damaged and hostile packs: each is refused, none is read past its end."""

from __future__ import annotations

import numpy as np
import pytest

from edgesparse.errors import CorruptPack
from edgesparse.packed import FORMATS, PackedTensor
from edgesparse.pattern import Pattern

HALF = Pattern(sparsity=0.5)
UNSTRUCTURED = sorted(name for name in FORMATS if name.startswith(("dense", "bitmask")))


def rebuilt(packed, *, drop=(), **changes):
    buffers = {key: value for key, value in packed.buffers.items() if key not in drop} | changes
    return PackedTensor(spec=packed.spec, shape=packed.shape, buffers=buffers)


def poked(buffer, index, value):
    copy = buffer.copy()
    copy[index] = value
    return copy


@pytest.fixture
def packed(make_codes):
    return FORMATS.get("bitmask4").pack(make_codes((40, 200), bits=4), pattern=HALF)


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_every_missing_longer_shorter_or_retyped_buffer(name, make_codes):
    layout = FORMATS.get(name)
    sparsity = 0.0 if name.startswith("dense") else 0.5
    codes = make_codes((40, 200), bits=layout.bits, sparsity=sparsity)
    packed = layout.pack(codes, pattern=HALF)
    for key, buffer in packed.buffers.items():
        damaged = [
            rebuilt(packed, drop=(key,)),
            rebuilt(packed, **{key: buffer[:-1]}),
            rebuilt(packed, **{key: buffer[: -(64 // buffer.itemsize)]}),
            rebuilt(packed, **{key: np.concatenate([buffer, buffer])}),
            rebuilt(packed, **{key: buffer.astype(np.int16)}),
            rebuilt(packed, **{key: buffer.reshape(1, -1)}),
        ]
        for pack in damaged:
            with pytest.raises(CorruptPack):
                layout.check(pack)


@pytest.mark.parametrize("shape", [(), (-1, 200), (40, 2**40), (56, 200), (40, 400)])
def test_another_shape(packed, shape):
    with pytest.raises(CorruptPack):
        FORMATS.get("bitmask4").check(
            PackedTensor(spec=packed.spec, shape=shape, buffers=packed.buffers)
        )


def test_an_unknown_buffer(packed):
    with pytest.raises(CorruptPack, match="unknown buffer 'extra'"):
        FORMATS.get("bitmask4").check(rebuilt(packed, extra=np.zeros(64, np.uint8)))


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 15])
def test_an_offset_that_does_not_follow_from_the_mask(packed, index, value):
    offsets = packed.buffers["offsets"]
    if offsets[index] == value:
        pytest.skip("that is the right one")
    with pytest.raises(CorruptPack, match="offsets"):
        FORMATS.get("bitmask4").check(rebuilt(packed, offsets=poked(offsets, index, value)))


def test_a_mask_that_keeps_more_than_is_stored(packed):
    full = np.full_like(packed.buffers["mask"], 2**64 - 1)
    with pytest.raises(CorruptPack):
        FORMATS.get("bitmask4").check(rebuilt(packed, mask=full))


def test_a_kept_weight_in_the_padding(make_codes):
    layout = FORMATS.get("bitmask4")
    packed = layout.pack(make_codes((8, 128), bits=4, sparsity=0.0), pattern=HALF)
    swapped = packed.buffers["mask"].copy()
    swapped[0] = (swapped[0] << np.uint64(32)) & np.uint64(2**64 - 1)  # rows 8..15 for rows 0..7
    with pytest.raises(CorruptPack, match="outside"):
        layout.unpack(rebuilt(packed, mask=swapped))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_is_not_finite_and_positive(packed, scale):
    scales = poked(packed.buffers["scales"], 3, scale)
    with pytest.raises(CorruptPack, match="scale"):
        FORMATS.get("bitmask4").check(rebuilt(packed, scales=scales))


def test_a_scale_in_a_row_of_padding(packed):
    with pytest.raises(CorruptPack, match="scale"):
        FORMATS.get("bitmask4").check(
            rebuilt(packed, scales=poked(packed.buffers["scales"], 3 * 7 * 16 - 1, 1.0))
        )


def test_bits_that_belong_to_no_code(packed):
    for index in (-1, -65):
        codes = poked(packed.buffers["codes"], index, 1)
        with pytest.raises(CorruptPack):
            FORMATS.get("bitmask4").unpack(rebuilt(packed, codes=codes))


def test_a_dense_code_in_the_padding(make_codes):
    layout = FORMATS.get("dense4")
    packed = layout.pack(make_codes((8, 100), bits=4, sparsity=0.0), pattern=Pattern())
    for lane in (32, 13 * 64):  # row 8; column 104
        codes = poked(packed.buffers["codes"], lane, 1)
        with pytest.raises(CorruptPack, match="not zero"):
            layout.unpack(rebuilt(packed, codes=codes))


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_random_damage_is_refused_or_harmless(name, make_codes):
    """A flipped bit either raises, or changes codes and nothing else."""
    layout = FORMATS.get(name)
    sparsity = 0.0 if name.startswith("dense") else 0.5
    packed = layout.pack(make_codes((20, 150), bits=layout.bits, sparsity=sparsity), pattern=HALF)
    rng = np.random.default_rng(0)
    for _ in range(200):
        key = list(packed.buffers)[rng.integers(len(packed.buffers))]
        words = packed.buffers[key].copy()
        words.view(np.uint8)[rng.integers(words.nbytes)] ^= np.uint8(1 << rng.integers(8))
        try:
            codes = layout.unpack(rebuilt(packed, **{key: words}))
        except CorruptPack:
            continue
        again = layout.pack(codes, pattern=HALF)
        assert all(
            np.array_equal(
                again.buffers[k].view(np.uint8), (words if k == key else v).view(np.uint8)
            )
            for k, v in packed.buffers.items()
        )
