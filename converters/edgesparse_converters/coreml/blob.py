"""The weight file of a package (MIL blob storage, version 2), read by memory map.

Little-endian. A header of 64 bytes: u32 number of blobs, u32 version = 2, zeros. Then for each blob
a record of 64 bytes, aligned to 64, and its data, aligned to 64:

    bytes  0..3   u32  0xDEADBEEF
           4..7   u32  type of the elements, see ``TYPES``
           8..15  u64  bytes of data
          16..23  u64  position of the data in the file
          24..31  u64  bits of padding in the last byte, for elements narrower than a byte
          32..63       zeros

Elements narrower than a byte lie in one stream of bits, the lowest bit of a byte first.
The file is never read beyond what a record says and the file holds.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError

MAGIC = 0xDEADBEEF
VERSION = 2
ALIGNMENT = 64
HEADER = struct.Struct("<II56x")
RECORD = struct.Struct("<IIQQQ32x")


@dataclass(frozen=True)
class ElementType:
    """How one element is stored.

    Attributes:
        code: Number of the type in a blob's record.
        bits: Bits of one element.
        dtype: NumPy type that holds it once read.
    """

    code: int
    bits: int
    dtype: np.dtype[np.generic]


def _type(code: int, bits: int, dtype: type[np.generic]) -> ElementType:
    return ElementType(code, bits, np.dtype(dtype).newbyteorder("<"))


TYPES = {
    "float16": _type(1, 16, np.float16),
    "float32": _type(2, 32, np.float32),
    "uint8": _type(3, 8, np.uint8),
    "int8": _type(4, 8, np.int8),
    "int16": _type(6, 16, np.int16),
    "uint16": _type(7, 16, np.uint16),
    "int4": _type(8, 4, np.int8),
    "uint1": _type(9, 1, np.uint8),
    "uint2": _type(10, 2, np.uint8),
    "uint4": _type(11, 4, np.uint8),
    "uint3": _type(12, 3, np.uint8),
    "uint6": _type(13, 6, np.uint8),
    "int32": _type(14, 32, np.int32),
    "uint32": _type(15, 32, np.uint32),
}
_NAMES = {element.code: name for name, element in TYPES.items()}


@dataclass(frozen=True)
class Record:
    """Where one blob is.

    Attributes:
        offset: Position of the record.
        type: Name of the element type.
        nbytes: Bytes of data.
        start: Position of the data.
        padding_bits: Bits of the last byte that are no element, for elements narrower than a byte.
    """

    offset: int
    type: str
    nbytes: int
    start: int
    padding_bits: int = 0


class BlobFile:
    """A weight file, mapped.

    Args:
        path: The file.

    Raises:
        SourceError: It cannot be read or is no weight file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise SourceError(f"{path}: the weight file cannot be read: {error}") from None
        if len(self._data) < HEADER.size:
            raise SourceError(f"{path}: {len(self._data)} bytes are too few for a weight file")
        self.count, version = HEADER.unpack_from(self._data, 0)
        if version != VERSION:
            raise SourceError(f"{path}: weight file version {version}, this reader knows {VERSION}")

    def record(self, offset: int) -> Record:
        """Return the record at ``offset``, checked against the file.

        Raises:
            SourceError: No record is there, or its data reaches beyond the file.
        """
        size = len(self._data)
        if offset < HEADER.size or offset % ALIGNMENT or offset + RECORD.size > size:
            raise SourceError(
                f"{self.path}: a weight is said to be at byte {offset}; the file has {size}"
            )
        magic, code, nbytes, start, padding = RECORD.unpack_from(self._data, offset)
        if magic != MAGIC or code not in _NAMES:
            raise SourceError(
                f"{self.path}: no weight at byte {offset}: found {magic:#x} and type {code}"
            )
        if start < offset + RECORD.size or start > size or nbytes > size - start:
            raise SourceError(
                f"{self.path}: the weight at byte {offset} has {nbytes} bytes from {start} on, "
                f"beyond the file's {size}; the file is truncated or damaged"
            )
        return Record(offset, _NAMES[code], nbytes, start, padding)

    def read(self, offset: int, type_name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """Return the array whose record is at ``offset``, in the shape the program says.

        Raises:
            SourceError: The record is of another type or size.
        """
        record = self.record(offset)
        count = _product(shape)
        expected = nbytes(type_name, count) if type_name in TYPES else -1
        if record.type != type_name or record.nbytes != expected:
            raise SourceError(
                f"{self.path}: the weight at byte {offset} is {record.type} of {record.nbytes} "
                f"bytes, the program says {type_name} of shape {shape}"
            )
        return unpack(self.data(record), type_name, count).reshape(shape)

    def data(self, record: Record) -> memoryview:
        """Return the bytes of a blob as they lie in the file."""
        return memoryview(self._data)[record.start : record.start + record.nbytes]


def nbytes(type_name: str, count: int) -> int:
    """Return the bytes ``count`` elements of a type take."""
    return -(-count * TYPES[type_name].bits // 8)


def unpack(data: memoryview, type_name: str, count: int) -> NDArray[np.generic]:
    """Return ``count`` elements of packed data; elements wider than 7 bits are not copied."""
    element = TYPES[type_name]
    if element.bits >= 8:
        return np.frombuffer(data, element.dtype, count)
    packed = np.frombuffer(data, np.uint8)
    if element.bits == 4:
        codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count]
    else:
        bits = np.unpackbits(packed, count=count * element.bits, bitorder="little")
        weights = np.uint8(1) << np.arange(element.bits, dtype=np.uint8)
        codes = bits.reshape(count, element.bits) @ weights
    if type_name == "int4":
        return ((codes ^ 8).astype(np.int8) - 8).astype(np.int8)
    return codes


def pack(values: NDArray[np.generic], type_name: str) -> bytes:
    """Return elements as they lie in the file; the inverse of ``unpack``.

    Args:
        values: One-dimensional, every element within the type.
        type_name: Key of ``TYPES``.
    """
    element = TYPES[type_name]
    if element.bits >= 8:
        return values.astype(element.dtype, copy=False).tobytes()
    if element.bits == 4:
        codes = np.zeros(values.size + values.size % 2, np.uint8)
        np.bitwise_and(values.astype(np.uint8, copy=False), 15, out=codes[: values.size])
        return (codes[::2] | codes[1::2] << 4).tobytes()
    bits = values.astype(np.uint8)[:, None] >> np.arange(element.bits, dtype=np.uint8) & 1
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:  # Python integers: a hostile shape must not overflow
        count *= size
    return count
