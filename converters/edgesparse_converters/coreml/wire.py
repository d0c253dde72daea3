"""Protocol-buffer wire format, read from a memory map and checked before it is trusted.

A message is a run of fields, each a varint key ``number << 3 | kind`` and a value: kind 0 a varint,
1 eight bytes, 2 a varint length and that many bytes, 5 four bytes; all little-endian.
https://protobuf.dev/programming-guides/encoding/

``Message`` keeps the raw fields by number. Nested messages are parsed when they are asked for, so
reading a package costs what is looked at; a length that reaches beyond its message is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class WireError(ValueError):
    """Bytes that are no protocol-buffer message of the expected kind."""


class Message:
    """The fields of one message, by number.

    Args:
        data: The bytes of the message.

    Raises:
        WireError: The bytes are not a message.
    """

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[int | memoryview]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def messages(self, number: int) -> Iterator[Message]:
        """Yield the nested messages of a repeated field."""
        for value in self._fields.get(number, ()):
            yield Message(_bytes(value, number))

    def message(self, number: int) -> Message:
        """Return one nested message, empty if the field is absent."""
        return Message(self.bytes(number))

    def entries(self, number: int) -> Iterator[tuple[str, Message]]:
        """Yield key and value of a map field with string keys."""
        for entry in self.messages(number):
            yield entry.text(1), entry.message(2)

    def bytes(self, number: int) -> memoryview:
        """Return the bytes of a field; of several the last, as the format says; absent is empty."""
        return _bytes(self._fields.get(number, [memoryview(b"")])[-1], number)

    def text(self, number: int) -> str:
        """Return a string field."""
        return _text(self.bytes(number))

    def texts(self, number: int) -> list[str]:
        """Return a repeated string field."""
        return [_text(_bytes(value, number)) for value in self._fields.get(number, ())]

    def integer(self, number: int) -> int:
        """Return an integer field as two's complement of 64 bits; absent is 0."""
        return _signed(_integer(self._fields.get(number, [0])[-1], number))

    def integers(self, number: int) -> NDArray[np.int64]:
        """Return a repeated integer field, packed or not."""
        found: list[int] = []
        for value in self._fields.get(number, ()):
            found.extend(_varints(value) if isinstance(value, memoryview) else [value])
        return np.array([_signed(value) for value in found], np.int64)

    def numbers(
        self, number: int, dtype: type[np.float32] | type[np.float64]
    ) -> NDArray[np.float64]:
        """Return a repeated float or double field, packed or not, as float64."""
        size = np.dtype(dtype).itemsize
        parts = []
        for value in self._fields.get(number, ()):
            data = value if isinstance(value, memoryview) else value.to_bytes(size, "little")
            if len(data) % size:
                raise WireError(f"field {number}: {len(data)} bytes are no {np.dtype(dtype)} array")
            parts.append(np.frombuffer(data, np.dtype(dtype).newbyteorder("<")))
        joined = np.concatenate(parts) if parts else np.zeros(0, dtype)
        return joined.astype(np.float64)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 at byte {at}")
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise WireError(f"field {number} has kind {kind}, which does not exist")
        if size > end - at:
            raise WireError(f"field {number}: {size} bytes, but the message ends after {end - at}")
        part = data[at : at + size]
        at += size
        yield number, part if kind == BYTES else int.from_bytes(part, "little")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + index + 1
    raise WireError(f"a varint that does not end, at byte {at}")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _signed(value: int) -> int:
    return int(struct.unpack("<q", struct.pack("<Q", value))[0])


def _integer(value: int | memoryview, number: int) -> int:
    if isinstance(value, int):
        return value
    raise WireError(f"field {number}: found bytes, expected an integer")


def _bytes(value: int | memoryview, number: int) -> memoryview:
    if isinstance(value, memoryview):
        return value
    raise WireError(f"field {number}: found an integer, expected bytes")


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"text that is not UTF-8: {error}") from None
