"""Which stored format a rule gets: the smallest that holds it, for that is all formats differ in.

All formats hold the same numbers, so the choice never changes what a model computes. A mask costs
one bit a weight and saves the codes of the removed ones: at 4 bits the bitmask wins above 25 %
sparsity, at 3 bits above 33 %, at 2 bits above 50 %; the exact bytes, padding included, decide.

Layouts made for one pattern (2:4, n:64, blocks) are used where the plan is for a target that reads
them. Without a target a plan keeps to the layouts every target reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from edgesparse.formats.choice import candidates
from edgesparse.packed import ALL_BITS, FORMATS, INTEGER_BITS, SYMMETRIC, TABLE, FormatSpec
from edgesparse.pattern import Pattern
from edgesparse.recipe import Rule

PORTABLE = frozenset(
    [*(f"dense{bits}" for bits in INTEGER_BITS), *(f"bitmask{bits}" for bits in ALL_BITS)]
)
"""Formats that every target reads."""


@dataclass(frozen=True)
class Storage:
    """One way to store a tensor.

    Attributes:
        spec: The layout.
        buffers: Expected bytes of each buffer by name, in stored order.
    """

    spec: FormatSpec
    buffers: tuple[tuple[str, int], ...]

    @cached_property
    def nbytes(self) -> int:
        """Expected bytes."""
        return sum(nbytes for _, nbytes in self.buffers)


def readable_by(target: str | None) -> frozenset[str]:
    """Return the formats a plan for ``target`` may use.

    Raises:
        UnknownName: No such target.
    """
    if target is None:
        return PORTABLE
    from edgesparse.exporting import EXPORTERS

    return frozenset(EXPORTERS.get(target).accepts)


def choose(
    rule: Rule, shape: tuple[int, ...], formats: frozenset[str] = PORTABLE
) -> Storage | None:
    """Return the smallest storage for ``rule``, or None: dense float16 has no packed form.

    Args:
        rule: Bits, group size, scheme and pattern.
        shape: Shape of the weight.
        formats: Names of the formats that may be used.
    """
    columns = 1
    for size in shape[1:]:
        columns *= size
    # One scale for a row is a group as wide as the row, in whole octets of columns.
    has_scales = rule.bits != 16 and rule.scheme != TABLE
    group_size = (rule.group_size or -(-columns // 8) * 8) if has_scales else 0
    scheme = (rule.scheme, rule.table_rows)
    return _smallest(rule.bits, group_size, scheme, rule.pattern, shape, formats)


@lru_cache(maxsize=65536)
def _smallest(
    bits: int,
    group_size: int,
    scheme: tuple[str, int],
    pattern: Pattern,
    shape: tuple[int, ...],
    formats: frozenset[str],
) -> Storage | None:
    found = []
    for name in candidates(pattern, bits=bits):
        if name not in formats or (pattern.is_dense and not name.startswith("dense")):
            continue
        if not _holds(name, scheme[0], pattern):
            continue
        spec = FORMATS.get(name).spec(
            group_size=group_size, pattern=pattern, scheme=scheme[0], table_rows=scheme[1]
        )
        buffers = FORMATS.get(name).predict_nbytes(spec, shape)
        found.append(Storage(spec, tuple(buffers.items())))
    return min(found, key=lambda storage: storage.nbytes, default=None)


def _holds(name: str, scheme: str, pattern: Pattern) -> bool:
    """Whether a format can hold codes of ``scheme`` under masks of ``pattern``."""
    if scheme == SYMMETRIC:
        return True
    # Without a mask, what is removed needs an entry 0, which a table need not have.
    dense = name.startswith("dense") and (scheme != TABLE or pattern.is_dense)
    return dense or name.startswith("bitmask")
