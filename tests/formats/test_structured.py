"""The layouts for structured masks: what is stored comes back, what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.packed import FORMATS, Codes, PackedTensor, matrix_shape
from edgesparse.pattern import Pattern

CASES = [
    ("nm4", "2:4", 0.5), ("nm4", "1:4", 0.75), ("n64", "16:64", 0.75), ("n64", "8:64", 0.875),
    ("n64", "24:64", 0.625), ("column16", "16x1", 0.5), ("column16", "32x1", 0.9),
    ("block16x8", "16x8", 0.5), ("block16x8", "32x16", 0.9),
]  # fmt: skip
SHAPES = [(1, 1), (17, 129), (33, 5), (5, 3, 3, 3), (64, 300), (0, 4), (4, 0), (3,), (2, 65_700)]


def draw(shape, pattern, *, group_size=32, seed=0) -> Codes:
    rng = np.random.default_rng(seed)
    rows, columns = matrix_shape(shape)
    if pattern.n_of_m:
        keep, of = pattern.n_of_m
        groups = -(-columns // of)
        mask = (rng.random((rows, groups, of)).argsort(axis=2) < keep).reshape(rows, groups * of)
    else:
        height, width = pattern.block
        mask = rng.random((-(-rows // height), -(-columns // width))) >= pattern.sparsity
        mask = mask.repeat(height, 0).repeat(width, 1)[:rows]
    mask = mask[:, :columns].reshape(shape)
    return Codes(
        values=(rng.integers(-8, 8, shape) * mask).astype(np.int8),
        scales=(rng.integers(128, 256, (rows, -(-columns // group_size))) / 4096).astype(
            np.float16
        ),
        keep_mask=mask,
        bits=4,
        group_size=group_size,
    )


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    name, text, sparsity = request.param
    return FORMATS.get(name), Pattern.parse(text, sparsity=sparsity)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [20, 128, 100_000])
def test_codes_come_back(case, shape, group_size):
    layout, pattern = case
    codes = draw(shape, pattern, group_size=group_size)
    packed = layout.pack(codes, pattern=pattern)
    read = layout.unpack(packed)
    assert np.array_equal(read.values, codes.values)
    assert np.array_equal(read.scales, codes.scales)
    assert np.all(read.keep_mask[codes.keep_mask])
    assert packed.nbytes == layout.nbytes(packed.spec, codes.keep_mask)
    assert list(packed.buffers) == list(layout.predict_nbytes(packed.spec, shape))
    assert all(buffer.nbytes % 64 == 0 for buffer in packed.buffers.values())


@pytest.mark.parametrize("size", range(1, 66))
def test_every_small_size(case, size):
    layout, pattern = case
    codes = draw((size, 131 - size), pattern, group_size=24, seed=size)
    assert np.array_equal(layout.pack(codes, pattern=pattern).decode(), codes.decode())


def test_a_full_mask_of_the_pattern_comes_back_whole(case):
    layout, pattern = case
    codes = draw((32, 256), pattern)
    if pattern.n_of_m != (1, 4):
        read = layout.unpack(layout.pack(codes, pattern=pattern))
        assert np.array_equal(read.keep_mask, codes.keep_mask)


def test_prediction_is_the_mean_over_random_masks(case):
    layout, pattern = case
    spec = layout.spec(group_size=128, pattern=pattern)
    shape = (96, 768)
    sizes = [layout.nbytes(spec, draw(shape, pattern, seed=seed).keep_mask) for seed in range(40)]
    predicted = sum(layout.predict_nbytes(spec, shape).values())
    standard_error = np.std(sizes) / np.sqrt(len(sizes))
    assert abs(np.mean(sizes) - predicted) <= 4 * standard_error + 0.002 * predicted


@pytest.mark.parametrize("name", ["nm4", "n64", "column16", "block16x8"])
def test_another_pattern_is_refused(name):
    pattern = Pattern(sparsity=0.5)
    with pytest.raises(FormatError, match="use bitmask4"):
        FORMATS.get(name).pack(draw((16, 64), pattern), pattern=pattern)


@pytest.mark.parametrize(("name", "text"), [("nm4", "2:4"), ("n64", "16:64")])
def test_a_mask_that_breaks_its_promise_is_refused(name, text):
    full = draw((16, 64), Pattern())
    with pytest.raises(FormatError, match="neighbours are kept"):
        FORMATS.get(name).pack(full, pattern=Pattern.parse(text))


def rebuilt(packed, **changes):
    return PackedTensor(
        spec=packed.spec, shape=packed.shape, buffers=dict(packed.buffers) | changes
    )


def test_every_shorter_longer_or_missing_buffer(case):
    layout, pattern = case
    packed = layout.pack(draw((40, 200), pattern), pattern=pattern)
    for key, buffer in packed.buffers.items():
        short = buffer[: -(64 // buffer.itemsize)]
        for changed in (short, np.concatenate([buffer, buffer]), buffer.astype(np.int64)):
            with pytest.raises(CorruptPack):
                layout.check(rebuilt(packed, **{key: changed}))
        missing = {k: v for k, v in packed.buffers.items() if k != key}
        with pytest.raises(CorruptPack):
            layout.check(PackedTensor(spec=packed.spec, shape=packed.shape, buffers=missing))


def test_random_damage_is_refused_or_harmless(case):
    layout, pattern = case
    packed = layout.pack(draw((20, 150), pattern), pattern=pattern)
    rng = np.random.default_rng(0)
    for _ in range(150):
        key = list(packed.buffers)[rng.integers(len(packed.buffers))]
        damaged = packed.buffers[key].copy()
        damaged.view(np.uint8)[rng.integers(damaged.nbytes)] ^= np.uint8(1 << rng.integers(8))
        try:
            codes = layout.unpack(rebuilt(packed, **{key: damaged}))
        except CorruptPack:
            continue
        assert codes.shape == packed.shape


def by_hand(values, pattern, group_size):
    values = np.array(values, np.int8)
    groups = -(-values.shape[1] // group_size)
    codes = Codes(
        values=values,
        scales=np.ones((len(values), groups), np.float16),
        keep_mask=values != 0,
        bits=4,
        group_size=group_size,
    )
    return codes, pattern


def test_nm4_block_by_hand():
    codes, pattern = by_hand([[0, 3, 0, -2, 7, 0, 0, 0]], Pattern(keep=2, of=4), 8)
    buffers = FORMATS.get("nm4").pack(codes, pattern=pattern).buffers
    # Bits 0 and 1; the other three octets of the byte have the fillers 0, 1, 0, 1.
    assert (buffers["index"][:4] & 3).tolist() == [1, 3, 0, 1]
    assert buffers["codes"][:4].tolist() == [3, 0xE, 7, 0]


def test_n64_block_by_hand():
    values = np.zeros((1, 64), np.int8)
    values[0, [0, 5, 17, 20, 33, 40, 62, 63]] = [1, 2, 3, 4, 5, 6, 7, -8]
    codes, pattern = by_hand(values, Pattern(keep=8, of=64), 64)
    buffers = FORMATS.get("n64").pack(codes, pattern=pattern).buffers
    assert buffers["index"][:4].tobytes() == bytes.fromhex("1085e1f4")
    assert buffers["index"][128:132].tobytes() == bytes.fromhex("08080d0d")
    assert buffers["codes"][:4].tobytes() == bytes.fromhex("51627384")


def test_column16_block_by_hand():
    values = np.ones((16, 8), np.int8) * np.array([0, 1, 1, 0, 0, 0, 1, 0], np.int8)
    values[0] = [0, 3, -2, 0, 0, 0, 5, 0]
    codes, pattern = by_hand(values, Pattern(sparsity=0.625, block=(16, 1)), 4)
    buffers = FORMATS.get("column16").pack(codes, pattern=pattern).buffers
    assert buffers["columns"][0] == 0x46
    assert buffers["offsets"][:2].tolist() == [0, 64]
    assert buffers["codes"][:4].tobytes() == bytes.fromhex("530e0000")


def test_block16x8_block_by_hand():
    values = np.zeros((16, 24), np.int8)
    values[0, 8:16] = [3, 0, -2, 1, 5, 0, 0, -8]
    codes, pattern = by_hand(values, Pattern(sparsity=2 / 3, block=(16, 8)), 24)
    buffers = FORMATS.get("block16x8").pack(codes, pattern=pattern).buffers
    assert buffers["octets"][0] == 2
    assert buffers["offsets"][:2].tolist() == [0, 64]
    assert buffers["codes"][:4].tobytes() == bytes.fromhex("53000e81")
