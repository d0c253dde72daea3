"""Which stored format a rule gets: the smallest that holds it, for that is all formats differ in.

All formats hold the same numbers, so the choice never changes what a model computes. A mask costs
one bit a weight and saves the codes of the removed ones: at 4 bits the bitmask wins above 25 %
sparsity, at 3 bits above 33 %, at 2 bits above 50 %; the exact bytes, padding included, decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from edgesparse.packed import FORMATS, FormatSpec
from edgesparse.pattern import Pattern
from edgesparse.recipe import Rule


@dataclass(frozen=True)
class Storage:
    """One way to store a tensor.

    Attributes:
        spec: The layout.
        buffers: Expected bytes of each buffer by name, in stored order.
    """

    spec: FormatSpec
    buffers: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        """Expected bytes."""
        return sum(nbytes for _, nbytes in self.buffers)


def choose(rule: Rule, shape: tuple[int, ...]) -> Storage | None:
    """Return the smallest storage for ``rule``, or None: dense float16 has no packed form.

    Args:
        rule: Bits, group size and pattern.
        shape: Shape of the weight.
    """
    columns = 1
    for size in shape[1:]:
        columns *= size
    # One scale for a row is a group as wide as the row, in whole octets of columns.
    group_size = 0 if rule.bits == 16 else rule.group_size or -(-columns // 8) * 8
    return _smallest(rule.bits, group_size, rule.pattern, shape)


@lru_cache(maxsize=65536)
def _smallest(
    bits: int, group_size: int, pattern: Pattern, shape: tuple[int, ...]
) -> Storage | None:
    names = [f"dense{bits}"] if bits < 16 else []
    if not pattern.is_dense:
        names.append(f"bitmask{bits}")
    found = []
    for name in names:
        spec = FORMATS.get(name).spec(group_size=group_size, pattern=pattern)
        buffers = FORMATS.get(name).predict_nbytes(spec, shape)
        found.append(Storage(spec, tuple(buffers.items())))
    return min(found, key=lambda storage: storage.nbytes, default=None)
