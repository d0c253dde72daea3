"""Take values out of a stranger's JSON: each has the expected type or the pack is corrupt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgesparse.errors import CorruptPack

_MAX_INTEGER = 1 << 62


class Fields:
    """One JSON object and where it stands, for messages.

    Every method raises ``CorruptPack`` when the value is missing or of another type.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        self._value: Mapping[str, Any] = value
        self._where = where

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._value.get(key)
        if not isinstance(value, str):
            raise _wrong(f"{self._where}.{key}", "text", value)
        return value

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        value = self._value.get(key)
        if not isinstance(value, bool):
            raise _wrong(f"{self._where}.{key}", "true or false", value)
        return value

    def optional_boolean(self, key: str) -> bool | None:
        """Return true or false, or None for null."""
        return None if self._value.get(key) is None else self.boolean(key)

    def integer(self, key: str) -> int:
        """Return an integer from 0 to 2**62."""
        return _integer(self._value.get(key), f"{self._where}.{key}")

    def optional_integer(self, key: str) -> int | None:
        """Return an integer from 0 to 2**62, or None for null."""
        return None if self._value.get(key) is None else self.integer(key)

    def optional_text(self, key: str) -> str | None:
        """Return a string, or None for null."""
        return None if self._value.get(key) is None else self.text(key)

    def optional_number(self, key: str) -> float | None:
        """Return a finite number, or None for null."""
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(f"{self._where}.{key}", "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _wrong(f"{self._where}.{key}", "a finite number", value)
        return number

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise _wrong(f"{self._where}.{key}", "a list of text", values)
        return tuple(values)

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of integers from 0 to 2**62."""
        return tuple(_integer(value, f"{self._where}.{key}") for value in self._list(key))

    def object(self, key: str) -> Fields:
        """Return a JSON object."""
        return Fields(self._value.get(key), f"{self._where}.{key}")

    def optional_object(self, key: str) -> Fields | None:
        """Return a JSON object, or None for null."""
        return None if self._value.get(key) is None else self.object(key)

    def objects(self, key: str) -> Iterator[Fields]:
        """Return a list of JSON objects."""
        for i, value in enumerate(self._list(key)):
            yield Fields(value, f"{self._where}.{key}[{i}]")

    def raw(self, key: str) -> dict[str, Any]:
        """Return a JSON object as it is, for a reader that checks it by itself."""
        return dict(self.object(key)._value)

    def items(self) -> Iterator[tuple[str, Fields]]:
        """Yield every key with its object."""
        for key, value in self._value.items():
            yield key, Fields(value, f"{self._where}[{key!r}]")

    def wrong(self, message: str) -> CorruptPack:
        """Return the error that says ``message`` about this object."""
        return CorruptPack(f"{self._where}: {message}; the pack is damaged")

    def _list(self, key: str) -> list[Any]:
        value = self._value.get(key)
        if not isinstance(value, list):
            raise _wrong(f"{self._where}.{key}", "a list", value)
        return value


def _integer(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
        raise _wrong(where, "an integer from 0 to 2**62", value)
    return value


def _wrong(where: str, expected: str, value: object) -> CorruptPack:
    found = repr(value)
    shown = found if len(found) <= 60 else f"{found[:57]}..."
    return CorruptPack(f"{where}: expected {expected}, found {shown}; the pack is damaged")
