"""Which layout serves a mask best, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgesparse.errors import FormatError
from edgesparse.packed import ALL_BITS, FORMATS
from edgesparse.pattern import Pattern

Device = Literal["desktop", "phone"]


@dataclass(frozen=True)
class Choice:
    """A layout and the reason for it.

    Attributes:
        name: Row of the format registry.
        reason: One clause, for people.
    """

    name: str
    reason: str


def candidates(pattern: Pattern, *, bits: int) -> tuple[str, ...]:
    """Return the layouts that can hold masks of ``pattern`` with codes of ``bits`` bits.

    Raises:
        FormatError: No layout has codes of that many bits.
    """
    if bits not in ALL_BITS:
        raise FormatError(f"no layout stores codes of {bits} bits; known: {ALL_BITS}")
    plain = (f"bitmask{bits}",) if bits == 16 else (f"dense{bits}", f"bitmask{bits}")
    if bits != 4:
        return plain
    special = ("nm4", "n64", "column16", "block16x8")
    suited = (name for name in special if not pattern.is_dense and _suits(name, pattern))
    return (*suited, *plain)


def choose(
    pattern: Pattern,
    *,
    bits: int,
    device: Device = "desktop",
    speeds: Mapping[str, float] | None = None,
) -> Choice:
    """Return the layout to multiply with, by measured speed or else by rule.

    The rule, from products streamed from memory at 4 bits and 128 columns a scale:

    - A mask with structure takes the layout made for it. Nothing has to be expanded, so it is
      faster than a bitmask on every processor, and never larger by much.
    - Below 25 % sparsity a bitmask costs more bytes (one bit a weight) than it saves.
    - From 25 % to about 85 % a bitmask is the smallest, and on a processor that expands bytes by
      mask (AVX-512 VBMI2) also the fastest, as long as weights come from memory. Above that it
      gets no faster: a cell takes as long whatever it keeps. Prune in 16x1 or n:64 instead.
    - A phone's processor has no such instruction: there a bitmask saves storage and memory, not
      time. 2:4, n:64 and 16x1 save both.

    Args:
        pattern: What masks look like.
        bits: Bits of a code.
        device: Where products run, if nothing was measured there.
        speeds: Microseconds by layout, measured on the device; the fastest that fits wins.

    Raises:
        FormatError: No layout has codes of that many bits.
    """
    names = candidates(pattern, bits=bits)
    measured = {name: speeds[name] for name in names if name in speeds} if speeds else {}
    if measured:
        name = min(measured, key=measured.__getitem__)
        return Choice(name, f"fastest measured, {measured[name]:.0f} µs")
    first = names[0]
    if first not in (f"dense{bits}", f"bitmask{bits}"):
        return Choice(first, f"made for {pattern}")
    if bits == 16:
        return Choice("bitmask16", "the only layout of float16 values")
    if pattern.sparsity < 1 / bits:
        return Choice(f"dense{bits}", f"below {100 / bits:.0f} % a mask costs more than it saves")
    if device == "phone":
        return Choice(f"bitmask{bits}", "smallest; on a phone not faster, prune 2:4, n:64 or 16x1")
    if pattern.sparsity > 0.85:
        return Choice(f"bitmask{bits}", "smallest; above 85 % n:64 or 16x1 would be faster")
    return Choice(f"bitmask{bits}", "smallest, and fastest from memory")


def _suits(name: str, pattern: Pattern) -> bool:
    """Return whether a structured layout can hold masks of ``pattern``."""
    suits = getattr(FORMATS.get(name), "suits", None)
    return suits is not None and bool(suits(pattern))
