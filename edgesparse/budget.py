"""Budgets: what a model may cost, as a person writes it.

``2.2MB`` is 2,200,000 bytes, ``64MiB`` is 67,108,864, ``300000`` is bytes; ``5ms`` is a duration.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from decimal import Decimal

from edgesparse.errors import UsageError

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_DURATIONS = {"": 1, "ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)\s*")


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


def parse_duration(text: str | int) -> int:
    """Return the nanoseconds ``text`` means: ``5ms``, ``0.2s``, ``800us``; a bare number is ns.

    Raises:
        UsageError: Not a duration, or not positive.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].lower() not in _DURATIONS:
        raise UsageError(f"duration {text!r}: expected a number with a unit, such as 5ms or 800us")
    nanoseconds = int(Decimal(match[1]) * _DURATIONS[match[2].lower()])
    if nanoseconds <= 0:
        raise UsageError(f"duration {text!r}: expected more than zero")
    return nanoseconds


def format_duration(nanoseconds: float) -> str:
    """Return a duration with three digits, in the unit that suits it."""
    for unit, factor in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


@dataclass(frozen=True, kw_only=True, init=False)
class Budget:
    """Limits a model must keep; None is no limit.

    Attributes:
        file: Bytes of the weights at rest: of the written artifact when the plan names a target,
            else of ``weights.safetensors``.
        download: Bytes of the same when they are sent, compressed as stores and servers do.
        peak: Bytes of memory the target's runtime holds at its highest.
        latency: Nanoseconds of one token of a language model, by the products with its weights
            on this machine.
        context: Tokens of a language model whose cache ``peak`` counts; no limit itself.
    """

    file: int | None = None
    download: int | None = None
    peak: int | None = None
    latency: int | None = None
    context: int | None = None

    def __init__(
        self,
        *,
        file: str | int | None = None,
        download: str | int | None = None,
        peak: str | int | None = None,
        latency: str | int | None = None,
        context: str | int | None = None,
    ) -> None:
        for name, size in (("file", file), ("download", download), ("peak", peak)):
            object.__setattr__(self, name, None if size is None else parse_size(size))
        duration = None if latency is None else parse_duration(latency)
        object.__setattr__(self, "latency", duration)
        object.__setattr__(self, "context", None if context is None else _tokens(context))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``file=2.2MB,peak=12MB,latency=5ms,context=512``; a bare size is ``file``.

        Raises:
            UsageError: An unknown key, a key given twice, or not a size.
        """
        known = ("file", "download", "peak", "latency", "context")
        limits: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                parse_size(key)  # says that it is no size, rather than that file is given twice
                key, value = "file", key
            if key not in known:
                raise UsageError(f"budget {text!r}: unknown key {key!r}; known: {', '.join(known)}")
            if key in limits:
                raise UsageError(f"budget {text!r}: {key} is given twice")
            limits[key] = value
        return cls(**limits)

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is limited."""
        return not any((self.file, self.download, self.peak, self.latency))

    def to_json(self) -> dict[str, int | None]:
        """Return the JSON form, in bytes, nanoseconds and tokens."""
        return asdict(self)

    def __str__(self) -> str:
        limits = [
            f"{name} {format_size(value)}"
            for name, value in (
                ("file", self.file), ("download", self.download), ("peak", self.peak)
            )
            if value is not None
        ]  # fmt: skip
        limits += [] if self.latency is None else [f"latency {format_duration(self.latency)}"]
        limits += [] if self.context is None else [f"context {self.context} tokens"]
        return ", ".join(limits) or "none"


def _tokens(text: str | int) -> int:
    if not str(text).strip().isdigit() or int(text) < 1:
        raise UsageError(f"context {text!r}: expected a number of tokens, at least 1")
    return int(text)
