"""Budgets: what a model may cost, as a person writes it.

``2.2MB`` is 2,200,000 bytes, ``64MiB`` is 67,108,864, ``300000`` is bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from edgesparse.errors import UsageError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return the bytes ``text`` means; decimal units are powers of 1000, ``KiB`` of 1024.

    Raises:
        UsageError: Not a size, or not positive.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"size {text!r}: expected a number with a unit, such as 2.2MB or 64MiB")
    # Decimal, because 4.1 * 10**6 is 4099999.9999999995 in floating point.
    nbytes = int(Decimal(match[1]) * _UNITS[match[2].lower()])
    if nbytes <= 0:
        raise UsageError(f"size {text!r}: expected more than zero bytes")
    return nbytes


def format_size(nbytes: int | float) -> str:
    """Return ``nbytes`` the way sizes are printed everywhere: three digits, decimal units."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(nbytes) >= factor:
            value = nbytes / factor
            return f"{value:.{2 if abs(value) < 100 else 0}f} {unit}"
    return f"{int(nbytes)} B"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits a model must keep; None is no limit.

    Attributes:
        file: Bytes of the weights at rest: of the written artifact when the plan names a target,
            else of ``weights.safetensors``.
        peak: Bytes of memory the target's runtime holds at its highest.
    """

    file: int | None = None
    peak: int | None = None

    def __init__(self, *, file: str | int | None = None, peak: str | int | None = None) -> None:
        object.__setattr__(self, "file", None if file is None else parse_size(file))
        object.__setattr__(self, "peak", None if peak is None else parse_size(peak))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``file=2.2MB,peak=12MB``; a bare size is ``file``.

        Raises:
            UsageError: An unknown key, a key given twice, or not a size.
        """
        sizes: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                parse_size(key)  # says that it is no size, rather than that file is given twice
                key, value = "file", key
            if key not in ("file", "peak"):
                raise UsageError(f"budget {text!r}: unknown key {key!r}; known: file, peak")
            if key in sizes:
                raise UsageError(f"budget {text!r}: {key} is given twice")
            sizes[key] = value
        return cls(**sizes)

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self.file is None and self.peak is None

    def to_json(self) -> dict[str, int | None]:
        """Return the JSON form, in bytes."""
        return {"file": self.file, "peak": self.peak}

    def __str__(self) -> str:
        limits = [
            f"{name} {format_size(value)}"
            for name, value in (("file", self.file), ("peak", self.peak))
            if value is not None
        ]
        return ", ".join(limits) or "none"
