"""Who of a team solves which rows of the matrices of a group.

The matrices of a group have the same inputs, so the same columns: laid on top of each other they
are one stack of rows. Where every row can be solved apart the stack is cut into equal parts, one
for each process; else whole matrices are dealt out, the largest first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, lcm

from edgesparse.packed import TABLE, FormatSpec
from edgesparse.recipe import Rule

_TILE = 16
_LONGEST_UNIT = 64
_CRUMB = 8  # a cut this fraction from a matrix' end is moved there: a piece costs a whole sweep
# Methods that solve rows apart, and whether they factorize what all rows have in common. Pruners
# do with N:M patterns; of those that others have registered nothing is known.
_PRUNERS = {
    "magnitude": False, "wanda": False, "sparsegpt": True, "sparsegpt-fast": True, "admm": True,
}  # fmt: skip
_QUANTIZERS = {"rtn": False, "gptq": True}


@dataclass(frozen=True, kw_only=True)
class Share:
    """Rows ``begin`` to ``end`` of a matrix, solved by process ``rank``."""

    rank: int
    begin: int
    end: int

    @property
    def rows(self) -> slice:
        """The rows, as an index."""
        return slice(self.begin, self.end)


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """One matrix of a group.

    Attributes:
        rows: N.
        unit: Rows may be cut at multiples of this; None if all have to be solved together.
    """

    rows: int
    unit: int | None


def row_unit(rule: Rule, spec: FormatSpec, columns: int, *, factorizes: bool = True) -> int | None:
    """Return at multiples of how many rows a matrix may be cut; None if not at all.

    A fraction of the weights of a whole matrix is chosen from all of its rows; N of M neighbours,
    a fraction of each row, and codes with the row's own scales are not; one scale for the tensor
    is.

    Args:
        rule: What is done to the matrix.
        spec: How it is stored.
        columns: K.
        factorizes: Whether each part may factorize what all have in common: it costs time that
            other processes have, but one process would do it again for every part.
    """
    unit: int | None = _TILE
    if not rule.pattern.is_dense:
        if not _is_known(_PRUNERS, rule.method, factorizes):
            return None
        if rule.pattern.n_of_m is None:
            unit = _whole_rows(rule, columns)
    if unit is not None and spec.bits < 16:
        if rule.one_scale:
            return None
        if not _is_known(_QUANTIZERS, rule.quantizer, factorizes):
            return None
        if spec.scheme == TABLE and not spec.table_rows:
            return None
        unit = lcm(unit, spec.table_rows or 1)
    return unit


def _is_known(methods: Mapping[str, bool], method: str, factorizes: bool) -> bool:
    """Whether a method solves rows apart, and factorizes only where that is no matter."""
    return method in methods and (factorizes or not methods[method])


def _whole_rows(rule: Rule, columns: int) -> int | None:
    """Return after how many rows what Wanda carries from row to row is nothing."""
    if rule.method != "wanda" or rule.pattern.block != (1, 1):
        return None
    each = rule.pattern.sparsity * columns
    units = range(_TILE, _LONGEST_UNIT + 1, _TILE)
    return next((n for n in units if abs(each * n - round(each * n)) < 1e-6), None)


def share_out(
    group: Mapping[str, Stacked], size: int, load: Sequence[int]
) -> dict[str, tuple[Share, ...]]:
    """Return the shares of every matrix, in order of rows.

    Args:
        group: The matrices, by name.
        size: Processes.
        load: What each has had to do so far; decides where the group does not.
    """
    if size > 1 and all(matrix.unit is not None for matrix in group.values()):
        return _cut(group, size)
    taken = [0] * size
    shares: dict[str, tuple[Share, ...]] = {}
    for name in sorted(group, key=lambda n: -group[n].rows):
        rank = min(range(size), key=lambda r: (taken[r], load[r], r))
        taken[rank] += group[name].rows
        shares[name] = (Share(rank=rank, begin=0, end=group[name].rows),)
    return shares


def _cut(group: Mapping[str, Stacked], size: int) -> dict[str, tuple[Share, ...]]:
    """Cut the stack into ``size`` nearly equal parts."""
    each = max(1.0, sum(matrix.rows for matrix in group.values()) / size)
    top = 0
    shares: dict[str, tuple[Share, ...]] = {}
    for name, matrix in group.items():
        first = min(size - 1, int(top / each))
        ends = [_snapped((rank + 1) * each - top, matrix) for rank in range(first, size)]
        ends[-1] = matrix.rows
        own: list[Share] = []
        begin = 0
        for rank, end in enumerate(ends, first):
            if end > begin or (end == matrix.rows and not own):
                own.append(Share(rank=rank, begin=begin, end=end))
                begin = end
        shares[name] = tuple(own)
        top += matrix.rows
    return shares


def _snapped(row: float, matrix: Stacked) -> int:
    """Return the nearest row to cut at, an end of the matrix where that is near."""
    assert matrix.unit is not None
    crumb = ceil(matrix.rows / _CRUMB)
    if row < crumb:
        return 0
    if row > matrix.rows - crumb:
        return matrix.rows
    return min(matrix.rows, matrix.unit * round(row / matrix.unit))
