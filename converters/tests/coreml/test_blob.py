"""Weight files: one written by hand, every element type, and files that lie."""

import struct

import numpy as np
import pytest
from edgesparse_converters.coreml.blob import TYPES, BlobFile, nbytes, unpack

from edgesparse.errors import SourceError

CODES = {name: element.code for name, element in TYPES.items()}


def weight_file(path, *blobs, count=None, version=2):
    """Write (type name, data) pairs the way the byte map says."""
    data = bytearray(struct.pack("<II56x", len(blobs) if count is None else count, version))
    for name, content in blobs:
        record = (0xDEADBEEF, CODES[name], len(content), len(data) + 64, 0)
        data += struct.pack("<IIQQQ32x", *record) + content
        data += bytes(-len(data) % 64)
    path.write_bytes(data)
    return path


def test_two_blobs(tmp_path):
    halves = np.array([1.5, -2.0], "<f2").tobytes()
    file = BlobFile(weight_file(tmp_path / "w.bin", ("float16", halves), ("int4", b"\x7f\x08")))
    assert file.count == 2
    assert file.read(64, "float16", (2,)).tolist() == [1.5, -2.0]
    # low nibble first: 0xf = -1, 7, then 8 = -8, 0
    assert file.read(192, "int4", (2, 2)).tolist() == [[-1, 7], [-8, 0]]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("uint1", "05", [1, 0, 1, 0, 0]),
        ("uint2", "e4", [0, 1, 2, 3]),
        ("uint3", "88c6fa", [0, 1, 2, 3, 4, 5, 6, 7]),  # a stream of 3 bits, lowest first
        ("uint4", "21", [1, 2]),
        ("uint6", "4100", [1, 1]),
        ("uint8", "ff", [255]),
        ("int8", "ff", [-1]),
        ("int16", "feff", [-2]),
    ],
)
def test_every_width(name, data, expected):
    found = unpack(memoryview(bytes.fromhex(data)), name, len(expected))
    assert found.tolist() == expected


@pytest.mark.parametrize("count", range(1, 30))
@pytest.mark.parametrize("name", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4"])
def test_any_count_of_any_narrow_type(name, count):
    bits = TYPES[name].bits
    numbers = np.random.default_rng(count).integers(0, 1 << bits, count)
    stream = 0
    for index, number in enumerate(numbers.tolist()):
        stream |= number << (bits * index)
    data = stream.to_bytes(nbytes(name, count), "little")
    expected = numbers - (16 * (numbers >= 8) if name == "int4" else 0)
    assert unpack(memoryview(data), name, count).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("offset", "name", "shape", "message"),
    [
        (65, "int4", (4,), "said to be at"),
        (0, "int4", (4,), "said to be at"),
        (1 << 40, "int4", (4,), "said to be at"),
        (-64, "int4", (4,), "said to be at"),
        (128, "int4", (4,), "no weight at"),
        (64, "uint4", (4,), "int4 of 2 bytes"),
        (64, "int4", (5,), "int4 of 2 bytes"),
        (64, "int4", (1 << 40, 1 << 40), "int4 of 2 bytes"),
        (64, "float8", (2,), "int4 of 2 bytes"),
    ],
)
def test_a_program_that_asks_for_what_is_not_there(tmp_path, offset, name, shape, message):
    file = BlobFile(weight_file(tmp_path / "w.bin", ("int4", b"\x12\x34")))
    with pytest.raises(SourceError, match=message):
        file.read(offset, name, shape)


def test_a_record_that_reaches_beyond_the_file(tmp_path):
    path = weight_file(tmp_path / "w.bin", ("int8", bytes(64)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match="truncated"):
        BlobFile(path).read(64, "int8", (64,))


@pytest.mark.parametrize("content", [b"", b"short", bytes(64)])
def test_what_is_no_weight_file(tmp_path, content):
    path = tmp_path / "w.bin"
    path.write_bytes(content)
    with pytest.raises(SourceError):
        BlobFile(path)
    with pytest.raises(SourceError, match="cannot be read"):
        BlobFile(tmp_path / "absent.bin")
