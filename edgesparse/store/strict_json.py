"""JSON from strangers: objects only, no key twice, no NaN, no endless nesting."""

from __future__ import annotations

import json
from typing import Any

from edgesparse.errors import CorruptPack

_MAX_DIGITS = 40


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``.

    Args:
        text: UTF-8.
        where: Begins the message of an error.

    Raises:
        CorruptPack: Not one JSON object, or one that says the same key twice.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_int=_integer,
        )
    except RecursionError:
        raise CorruptPack(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # also bad UTF-8, and integers of thousands of digits
        raise CorruptPack(f"{where}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CorruptPack(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _integer(digits: str) -> int:
    # Tokenizers say "no limit" with 31 digits; beyond 308 float() fails where nobody expects it.
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
    return int(digits)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
