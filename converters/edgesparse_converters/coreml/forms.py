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

A scale of Core ML covers a rectangular block that divides every axis, the solver's a run of
``group_size`` columns, the last run of a row possibly short. Where runs are not such blocks the
scales are repeated at the largest block that divides them all, for a matrix gcd(K, group_size)
columns: the numbers stay the same, the file grows by the repetition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import Codes, matrix_shape

T = TypeVar("T", bound=np.generic)

SHIFT_SCALE = "constexpr_blockwise_shift_scale"
SPARSE_SHIFT_SCALE = "constexpr_sparse_blockwise_shift_scale"
LUT_TO_DENSE = "constexpr_lut_to_dense"
LUT_TO_SPARSE = "constexpr_lut_to_sparse"
SPARSE_TO_DENSE = "constexpr_sparse_to_dense"
CONST = "const"

TABLE_BITS = (2, 3)
"""Bits that Core ML has no signed integer type for."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may be chosen about a package's weights without changing a number.

    Attributes:
        tables: Write 4 bits as indices into a table as well.
        late_scale: Scale what was looked up rather than the tables.
        decoded: Write float16 values in full, for systems that know none of the other forms.
    """

    tables: bool = False
    late_scale: bool = False
    decoded: bool = False


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

    @property
    def is_indexed(self) -> bool:
        """Whether ``kept`` are indices of a table."""
        return self.table is not None or self.entries is not None

    @property
    def operations(self) -> tuple[str, ...]:
        """The chain of operations, first to last."""
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


def form_of(codes: Codes, choice: Choice = DEFAULT_CHOICE) -> Form:
    """Return how a weight as the solver chose it is written."""
    if choice.decoded:
        return value_form(codes.decode(), None)
    if codes.bits == 16:
        return value_form(codes.values.astype(np.float32), codes.keep_mask)
    assert codes.values.dtype == np.int8
    if codes.table is not None:
        entries = codes.table.astype(np.float32)
        indices = codes.values.view(np.int8)
        return table_form(indices, codes.keep_mask, entries, table_rows=codes.table_rows)
    return code_form(
        codes.values.view(np.int8),
        codes.keep_mask,
        codes.scales.astype(np.float32),
        group_size=codes.group_size,
        bits=codes.bits,
        choice=choice,
        zeros=codes.zeros,
    )


def code_form(
    codes: NDArray[np.int8],
    mask: NDArray[np.bool_] | None,
    scales: NDArray[np.float32],
    *,
    group_size: int,
    bits: int,
    choice: Choice = DEFAULT_CHOICE,
    zeros: NDArray[np.int8] | None = None,
) -> Form:
    """Return how codes with scales are written.

    Args:
        codes: int8, in the shape of the weight.
        mask: True = kept; None, or all True, when nothing is removed.
        scales: float32, shape (N, ceil(K / group_size)).
        group_size: Columns per scale.
        bits: 2, 3, 4 or 8.
        choice: What may be chosen about the package.
        zeros: Zeros of asymmetric codes, shape of ``scales``.
    """
    mask = None if mask is None or mask.all() else mask
    kept = codes if mask is None else codes[mask]
    blocks = block_scales(scales, codes.shape, group_size)
    stored, indexed = storage(bits, kept=kept.size, blocks=blocks.size, choice=choice)
    table = None
    if indexed:
        half = 1 << (bits - 1)
        table = np.arange(-half, half, dtype=np.int8)
        kept = (kept + half).astype(np.uint8)
    return Form(
        bits=stored,
        shape=codes.shape,
        kept=kept,
        mask=mask,
        table=table,
        scales=blocks,
        late_scale=choice.late_scale and indexed,
        zeros=None if zeros is None else block_scales(zeros, codes.shape, group_size),
    )


def table_form(
    indices: NDArray[np.int8],
    mask: NDArray[np.bool_] | None,
    table: NDArray[np.float32],
    *,
    table_rows: int,
) -> Form:
    """Return how indices of the solver's tables are written.

    A package has tables for equal blocks of rows; where ``table_rows`` does not divide the rows,
    tables are repeated for blocks of gcd(N, table_rows).

    Args:
        indices: int8, in the shape of the weight.
        mask: True = kept; None, or all True, when nothing is removed.
        table: float32, shape (tables, entries).
        table_rows: Rows that share a table; 0 for one table of all.
    """
    mask = None if mask is None or mask.all() else mask
    kept = (indices if mask is None else indices[mask]).view(np.uint8)
    rows = indices.shape[0]
    if table_rows:
        table = table[np.arange(0, rows, math.gcd(rows, table_rows)) // table_rows]
    return Form(
        bits=table.shape[1].bit_length() - 1,
        shape=indices.shape,
        kept=kept,
        mask=mask,
        table=None,
        scales=None,
        entries=table.reshape(len(table), *(1,) * (indices.ndim - 1), -1),
    )


def value_form(values: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> Form:
    """Return how float16 values (held as float32) are written."""
    mask = None if mask is None or mask.all() else mask
    kept = values if mask is None else values[mask]
    return Form(bits=16, shape=values.shape, kept=kept, mask=mask, table=None, scales=None)


def block_scales(scales: NDArray[T], shape: tuple[int, ...], group_size: int) -> NDArray[T]:
    """Return one scale per rectangular block, shape (N, number of blocks along each other axis).

    Args:
        scales: Scales or zeros, shape (N, ceil(K / group_size)).
        shape: Shape of the weight; K is the product of all but the first dimension.
        group_size: Columns per scale, in the row-major order of those dimensions.
    """
    group = group_indices(shape, group_size)
    for axis, block in enumerate(block_shape(shape, group_size)[1:]):
        group = group.take(np.arange(0, group.shape[axis], block), axis=axis)
    return np.ascontiguousarray(scales[:, group.reshape(-1)].reshape(shape[0], *group.shape))


def block_shape(shape: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Return the largest block, along each axis, that no run of ``group_size`` columns cuts.

    Example:
        >>> block_shape((64, 256), 128), block_shape((64, 300), 128)
        ((1, 128), (1, 4))
        >>> block_shape((8, 32, 3, 3), 144)  # 16 channels of 9 taps
        (1, 16, 3, 3)
    """
    group = group_indices(shape, group_size)
    return (1, *(_largest_block(group, axis) for axis in range(group.ndim)))


def group_indices(shape: tuple[int, ...], group_size: int) -> NDArray[np.int64]:
    """Return which scale of a row each of its columns has, in the row's own shape."""
    columns = matrix_shape(shape)[1]
    return (np.arange(columns, dtype=np.int64) // group_size).reshape(shape[1:])


def _largest_block(group: NDArray[np.int64], axis: int) -> int:
    """Return the largest divisor of the axis such that ``group`` is constant in its blocks."""
    size = group.shape[axis]
    moved = np.moveaxis(group, axis, 0).reshape(size, -1)
    changes = np.flatnonzero(np.any(moved[1:] != moved[:-1], axis=1)) + 1
    return math.gcd(size, *changes.tolist())
