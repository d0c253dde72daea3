"""Weights kept apart from their program: ExecuTorch's tensor files (``.ptd``).

    0   root offset, identifier "FT01"
    8   "FH01", header length, offset and size of the flatbuffer, offset of the first segment, bytes
        of segments
    …   flatbuffer: names, and the segment of each
    …   segments: bytes of the tensors

A program refers to its weights there by name; the runtime is given both files.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from edgesparse.errors import SourceError
from edgesparse_converters.executorch.flatbuffer import TENSORS_SCHEMA, to_json

SUFFIX = ".ptd"
IDENTIFIER = b"FT01"
_HEADER = struct.Struct("<4s4s4sIQQQQ")


def read_tensors(path: Path) -> dict[str, memoryview]:
    """Return the bytes of every tensor of a file by its name, mapped.

    Raises:
        SourceError: It cannot be read, is no tensor file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: the program's weights cannot be read: {error}") from None
    if data[4:8] != IDENTIFIER:
        raise SourceError(
            f"{path}: no tensor file: its identifier is {bytes(data[4:8])!r}, expected "
            f"{IDENTIFIER!r}"
        )
    try:
        return _tensors(data)
    except (struct.error, ValueError, KeyError, IndexError, TypeError) as error:
        raise SourceError(f"{path}: damaged tensor file: {error}; export it again") from None


def _tensors(data: memoryview) -> dict[str, memoryview]:
    _, _, magic, _, start, size, base, nbytes = _HEADER.unpack_from(data)
    if magic != b"FH01" or start + size > len(data) or base + nbytes > len(data):
        raise ValueError(f"its header promises more than its {len(data)} bytes")
    parsed = to_json(bytes(data[: start + size]), TENSORS_SCHEMA)
    segments = parsed["segments"]
    tensors = {}
    for entry in parsed["named_data"]:
        segment = segments[entry["segment_index"]]
        first = base + segment["offset"]
        if not 0 <= base <= first <= first + segment["size"] <= len(data):
            raise ValueError(f"{entry['key']} lies outside of it")
        tensors[entry["key"]] = data[first : first + segment["size"]]
    return tensors
