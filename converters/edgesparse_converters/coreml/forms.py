"""How one weight is written in a package: which ``constexpr_`` operations, on which arrays.

Core ML (iOS 18) rebuilds a compressed weight from constants by a chain of operations. ``c`` are
the codes, ``s`` the scales, ``i`` indices, ``m`` the mask; every chain gives exactly the solver's
numbers where ``m`` is set and 0 elsewhere:

    bits    nothing removed                            with a mask
    4, 8    blockwise_shift_scale(c, s)                sparse_blockwise_shift_scale(m, c[m], s)
                                                         -> sparse_to_dense
    2, 3    blockwise_shift_scale(table, s)            blockwise_shift_scale(table, s)
              -> lut_to_dense(i, ·)                      -> lut_to_sparse(m, i[m], ·)
                                                         -> sparse_to_dense
    16      an ordinary float16 constant               sparse_to_dense(m, w[m])
    table   lut_to_dense(i, entries)                   lut_to_sparse(m, i[m], entries)
                                                         -> sparse_to_dense

Asymmetric codes have their zeros as the ``offset`` of the operation that scales, in the type of
what it scales; a table of the solver's has one ``lut`` for each block of rows.

There is no int2 or int3 in Core ML: codes of 2 and 3 bits are indices of 2 and 3 bits into a table
of the 4 or 8 codes, one scaled table per block; where the tables cost more than that saves, the
same values are written as int4. Codes of 4 bits can be written that way too
(``Choice.tables``), for the Neural Engine, which prefers tables. A table costs 4, 8 or 16 bytes
a block. Looking up first and scaling afterwards would need one table a weight, but systems before
iOS 26 do not take that order (coremltools' pass ``canonicalize_quantized_lut_pattern``); it is used
for targets from iOS 26 on.

Systems before iOS 18 have other constants under the same names, which take no others, so that there
is no chain (``Form.old``; ``forming.old_form`` says what fits into them):

    8       affine_dequantize(c, s)            a scale for each row, nothing removed
    table   lut_to_dense(i, entries)           one table of 2, 4 or 16 entries, nothing removed
    16      sparse_to_dense(m, w[m])           float16 values
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHIFT_SCALE = "constexpr_blockwise_shift_scale"
SPARSE_SHIFT_SCALE = "constexpr_sparse_blockwise_shift_scale"
LUT_TO_DENSE = "constexpr_lut_to_dense"
LUT_TO_SPARSE = "constexpr_lut_to_sparse"
SPARSE_TO_DENSE = "constexpr_sparse_to_dense"
AFFINE = "constexpr_affine_dequantize"
CONST = "const"

TABLE_BITS = (2, 3)
"""Bits that Core ML has no signed integer type for."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may be chosen about a package's weights without changing a number.

    Attributes:
        tables: Write 4 bits as indices into a table as well.
        late_scale: Scale what was looked up rather than the tables.
        old: Write for a system before iOS 18: its own forms, or float16 values where it has none.
    """

    tables: bool = False
    late_scale: bool = False
    old: bool = False


DEFAULT_CHOICE = Choice()


def storage(bits: int, *, kept: int, blocks: int, choice: Choice) -> tuple[int, bool]:
    """Return the bits of a stored code and whether it is an index into a table.

    2 and 3 bits become 4-bit integers of the same values where the tables would cost more than
    the narrower indices save.

    Args:
        bits: Bits of the solver's codes.
        kept: Number of codes stored.
        blocks: Number of scales stored.
        choice: What was asked for.
    """
    if bits == 4:
        return 4, choice.tables
    if bits not in TABLE_BITS:
        return bits, False
    tables = (1 << bits) * (1 if choice.late_scale else blocks)
    return (4, False) if (4 - bits) * kept <= 8 * tables else (bits, True)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One weight as a package holds it.

    Attributes:
        bits: Bits of one stored value: 2, 3, 4, 8 or 16.
        shape: Shape of the weight.
        kept: Kept codes (int8), table indices (uint8) or values (float32), in the row-major order
            of the mask; all of the weight, in its shape, when there is no mask.
        mask: bool, True = kept; None when nothing is removed.
        table: int8 code of each index; None when ``kept`` are the codes or values themselves.
        scales: float32, one per block, as many dimensions as the weight; None with 16 bits or
            entries.
        late_scale: Scale what was looked up rather than the tables.
        zeros: int8, the zero of each block, shape of ``scales``; None where all are 0.
        entries: float32, the solver's tables, one for each block of rows, (blocks, 1, …, entries);
            None without.
        old: Written with the constants of systems before iOS 18.
    """

    bits: int
    shape: tuple[int, ...]
    kept: NDArray[np.generic]
    mask: NDArray[np.bool_] | None
    table: NDArray[np.int8] | None
    scales: NDArray[np.float32] | None
    late_scale: bool = False
    zeros: NDArray[np.int8] | None = None
    entries: NDArray[np.float32] | None = None
    old: bool = False

    @property
    def is_indexed(self) -> bool:
        """Whether ``kept`` are indices of a table."""
        return self.table is not None or self.entries is not None

    @property
    def operations(self) -> tuple[str, ...]:
        """The chain of operations, first to last."""
        if self.old and self.scales is not None:
            return (AFFINE,)
        return chain(
            self.bits,
            masked=self.mask is not None,
            table=self.is_indexed,
            late_scale=self.late_scale,
            scaled=self.entries is None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the constants without the file's own records and alignment."""
        mask = 0 if self.mask is None else -(-self.mask.size // 8)
        blocks = 0 if self.scales is None else self.scales.size
        tables = 0 if self.table is None else self.table.size * (1 if self.late_scale else blocks)
        entries = 0 if self.entries is None else 2 * self.entries.size
        zero_bits = 8 if self.table is not None else self.bits
        zeros = 0 if self.zeros is None else -(-self.zeros.size * zero_bits // 8)
        kept = -(-self.kept.size * self.bits // 8)
        return mask + kept + tables + 2 * blocks + entries + zeros


def chain(
    bits: int, *, masked: bool, table: bool, late_scale: bool = False, scaled: bool = True
) -> tuple[str, ...]:
    """Return the operations that rebuild a weight of ``bits`` bits, first to last."""
    if bits == 16:
        return (SPARSE_TO_DENSE,) if masked else (CONST,)
    look_up = LUT_TO_SPARSE if masked else LUT_TO_DENSE
    if not scaled:
        first: tuple[str, ...] = (look_up,)
    elif table and not late_scale:
        first = (SHIFT_SCALE, look_up)
    else:
        scale = SPARSE_SHIFT_SCALE if masked else SHIFT_SCALE
        first = (look_up, scale) if table else (scale,)
    return (*first, SPARSE_TO_DENSE) if masked else first
