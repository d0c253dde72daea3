"""The worked blocks of the byte maps, and the golden files: bytes that must never change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import Pattern

GOLDEN = Path(__file__).parent / "golden"


def test_bitmask_block_by_hand():
    values = np.array([[3, 0, -2, 0, 5, 0, 0, -8], [0, 7, 0, 0, 0, -1, 0, 0]], np.int8)
    codes = Codes(
        values=values,
        scales=np.array([[0.5], [0.25]], np.float16),
        keep_mask=values != 0,
        bits=4,
        group_size=8,
    )
    buffers = FORMATS.get("bitmask4").pack(codes, pattern=Pattern(sparsity=0.625)).buffers
    assert buffers["mask"].tolist() == [0x25, 0x29] + [0] * 30
    assert buffers["offsets"].tolist() == [0, 3] + [0] * 14
    assert buffers["codes"].tobytes() == bytes.fromhex("538ef7") + bytes(125)
    assert buffers["scales"].tolist() == [0.5, 0.25] + [0] * 30


def test_dense_block_by_hand():
    values = np.array([[3, 0, -2, 1, 5, 0, 0, -8], [-1, 7, 0, 0, 2, -1, 0, 0]], np.int8)
    codes = Codes(
        values=values,
        scales=np.array([[0.5], [0.25]], np.float16),
        keep_mask=np.ones((2, 8), bool),
        bits=4,
        group_size=8,
    )
    buffers = FORMATS.get("dense4").pack(codes, pattern=Pattern()).buffers
    block = bytes.fromhex("53000e812ff70000") + bytes(56)
    assert buffers["codes"].tobytes() == block + bytes(15 * 64)
    assert buffers["scales"].tolist() == [0.5, 0.25] + [0] * 30


def test_three_bits_are_two_planes():
    # Codes -4 -1 3 2 in the four quads of one row: low bits 00 11 11 10, high bits 1 1 0 0.
    values = np.zeros((1, 16), np.int8)
    values[0, ::4] = [-4, -1, 3, 2]
    codes = Codes(
        values=values,
        scales=np.ones((1, 1), np.float16),
        keep_mask=values != 0,
        bits=3,
        group_size=16,
    )
    buffers = FORMATS.get("bitmask3").pack(codes, pattern=Pattern(sparsity=0.75)).buffers
    assert buffers["codes"][0] == 0b10_11_11_00
    assert buffers["codes_high"][0] == 0b0000_0011
    assert not buffers["codes"][1:].any()
    assert not buffers["codes_high"][1:].any()


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def test_golden_file_reads_as_it_was_written(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    layout = FORMATS.get(name.partition("-")[0])
    extra = {key: golden[key] for key in ("zeros", "table") if key in golden}
    if "table_rows" in golden:
        extra["table_rows"] = int(golden["table_rows"])
    pattern = Pattern.parse(str(golden["pattern"]), sparsity=float(golden["sparsity"]))
    codes = Codes(
        values=golden["values"],
        scales=golden["scales"],
        keep_mask=golden["keep_mask"],
        bits=layout.bits,
        group_size=int(golden["group_size"]),
        **extra,
    )
    stored = {key[7:]: golden[key] for key in golden if key.startswith("buffer_")}
    packed = layout.pack(codes, pattern=pattern)
    assert list(packed.buffers) == list(stored)
    for key, buffer in stored.items():
        assert packed.buffers[key].dtype == buffer.dtype
        assert packed.buffers[key].tobytes() == buffer.tobytes()
    read = layout.unpack(PackedTensor(spec=packed.spec, shape=codes.shape, buffers=stored))
    assert np.array_equal(read.values, codes.values)
    assert np.array_equal(read.scales, codes.scales)
    assert read.scheme == codes.scheme
    assert np.array_equal(read.decode(), codes.decode())


def test_every_format_has_a_golden_file():
    assert set(FORMATS) <= {path.stem for path in GOLDEN.glob("*.npz")}
