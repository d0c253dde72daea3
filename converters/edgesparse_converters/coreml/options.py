"""What may be chosen about a package, and what makes no sense together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgesparse.errors import UsageError

SYSTEMS = ("iOS18", "iOS26")
"""Deployment targets that know sparse and sub-byte constants; macOS 15 and 26 are the same."""
OLD_SYSTEMS = ("iOS17",)
"""Deployment targets to which weights go as plain float16 values, if that is allowed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen about a package.

    Attributes:
        system: Oldest system that loads it: ``iOS18``, ``iOS26``, or ``iOS17`` with
            ``allow_conversion``.
        allow_conversion: Write weights that the system has no form for as float16 values in full:
            the same numbers, without what compression saves.
        tables: Write 4-bit codes as indices into tables, which the Neural Engine prefers.
        fused_attention: Leave attention one operator; see ``frontend.lower``.
        tokens: Length of a language model's input; None takes the example's.
        flexible: Take any length from 2 to ``tokens``.
        shapes: The few shapes inputs may have, as ``shapes.parse_shapes`` reads them.
        ranges: The sizes that are open, and between which bounds, as ``shapes.parse_ranges`` reads
            them.
        context: Places of a key/value cache that the package keeps as state; then it has two
            functions, ``prefill`` and ``decode``. None writes one function without state.
        prefill: Tokens that ``prefill`` takes at once.
    """

    system: str = "iOS18"
    allow_conversion: bool = False
    tables: bool = False
    fused_attention: bool = False
    tokens: int | None = None
    flexible: bool = False
    shapes: str | None = None
    ranges: str | None = None
    context: int | None = None
    prefill: int = 32

    def __post_init__(self) -> None:
        if self.system not in (*SYSTEMS, *OLD_SYSTEMS):
            raise UsageError(
                f"system {self.system!r}: expected {', '.join(OLD_SYSTEMS)}, {' or '.join(SYSTEMS)}"
            )
        if self.system in OLD_SYSTEMS and self.context is not None:
            raise UsageError(f"{self.system} keeps no state; leave the context out, or use iOS18")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"tokens is {self.tokens}, expected at least 1")
        if self.context is not None and not 1 <= self.prefill <= self.context:
            raise UsageError(
                f"prefill is {self.prefill} tokens with a context of {self.context}; expected 1 to "
                "the context"
            )
        if self.flexible and (self.tokens or 0) < 2:
            raise UsageError("flexible needs tokens, the longest input: at least 2")
        if self.context is not None and self.tokens is not None:
            raise UsageError("give tokens or a context: a package with a cache takes any length")
        sized = (self.shapes, self.ranges, self.tokens, self.context)
        if sum(each is not None for each in sized) > 1:
            raise UsageError(
                "give shapes, ranges, tokens or a context: each of them sets the sizes"
            )


def read_options(values: Mapping[str, Any]) -> Options:
    """Return options by name.

    Raises:
        UsageError: A name that is no option, or a value of another type.
    """
    kinds = {field.name: str(field.type).split(" ")[0] for field in fields(Options)}
    for name, value in values.items():
        if name not in kinds:
            raise UsageError(f"coreml has no option {name!r}; known: {', '.join(kinds)}")
        if value is not None and type(value).__name__ != kinds[name]:
            raise UsageError(f"option {name} is {value!r}, expected {kinds[name]}")
    return Options(**values)
