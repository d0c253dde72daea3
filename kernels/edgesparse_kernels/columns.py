"""Products that skip columns whose activation is 0: weights column by column, in memory only.

Activations of a language model are mostly small. Where those below a threshold count as 0 (Liu et
al. 2024, TEAL, 2408.14690; the idea: Liu et al. 2023, Deja Vu, 2310.17157) their columns need not
be read. In tiles of 16 rows a column has no bytes of its own; here a block is 128 rows and a
column of it one cache line: rows 0 to 63 in the low halves of 64 bytes, 64 to 127 in the high ones.
Four columns that are kept become four registers of 16 rows by 4 columns, the cells of ``dot``.

    byte 16 l + 4 r + j of a line    row 16 r + 4 l + j, for l, r, j from 0 to 3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from edgesparse_kernels import _isa, activations, columns_avx2, reference
from edgesparse_kernels._isa import dot, high_lanes, high_sums
from edgesparse_kernels._jit import by_isa, entry, is_enabled, jit
from edgesparse_kernels._simd import (
    I16,
    LANES,
    add_i,
    all_sums,
    i8x64,
    load_i32,
    load_lanes,
    low_nibbles,
    no_floats,
    no_sums,
    operation,
    prefetch,
    store_floats,
    to_float,
)
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.columns_avx2 import AHEAD, BLOCK
from edgesparse_kernels.layout import aligned_copy, padded_columns
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.tiles import add_group, quantize

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_LINE = [16 * r + 4 * lane + j for lane in range(4) for r in range(4) for j in range(4)]


@dataclass(frozen=True, kw_only=True, eq=False)
class ColumnMatrix:
    """4-bit codes column by column.

    Attributes:
        rows: N.
        columns: K.
        group_size: Columns per scale.
        codes: uint8 [blocks, columns, 64].
        scales: float16 as uint16 words, [blocks, groups, 128].
    """

    rows: int
    columns: int
    group_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint16]


class _Numbers(NamedTuple):
    """The sizes ``quantize`` reads."""

    columns: int
    group_size: int
    groups: int
    quads: int


def by_column(matrix: PackedMatrix) -> ColumnMatrix:
    """Return the same weights column by column; removed ones take their 4 bits too.

    Raises:
        ValueError: The matrix has no symmetric 4-bit codes.
    """
    if matrix.bits != 4 or not matrix.is_symmetric:
        raise ValueError(f"columns are made of symmetric 4-bit codes, found {matrix.bits} bits")
    blocks = -(-matrix.rows // BLOCK)
    nibbles = np.zeros((blocks * BLOCK, matrix.columns), np.uint8)
    nibbles[: matrix.rows] = reference.decode_codes(matrix) & 15
    halves = nibbles.reshape(blocks, 2, 64, matrix.columns)[:, :, _LINE]
    lines = halves[:, 0] | halves[:, 1] << np.uint8(4)
    scales = np.zeros((blocks * BLOCK, matrix.groups), np.float16)
    scales[: matrix.rows] = reference.row_scales(matrix)
    by_block = scales.reshape(blocks, BLOCK, matrix.groups).transpose(0, 2, 1)
    return ColumnMatrix(
        rows=matrix.rows,
        columns=matrix.columns,
        group_size=min(matrix.group_size, matrix.columns),
        codes=aligned_copy(lines.transpose(0, 2, 1)),  # a column is to be one line, not half of two
        scales=aligned_copy(by_block).view(np.uint16),
    )


def matvec(
    x: NDArray[np.float32], matrix: ColumnMatrix, *, threshold: float, out: NDArray[np.float32]
) -> None:
    """Write ``weights @ x`` into ``out``, activations below ``threshold`` counting as 0.

    Args:
        x: float32 [K]; enters as int8, one scale for each group of the matrix.
        matrix: N by K.
        threshold: 0 keeps all.
        out: float32 [N].
    """
    chosen = np.where(np.abs(x) < np.float32(threshold), np.float32(0), x)
    if not is_enabled():
        out[:] = _reference(chosen, matrix)
        return
    out[:] = multiplier(matrix, chosen)()[: matrix.rows]


def _reference(x: NDArray[np.float32], matrix: ColumnMatrix) -> NDArray[np.float32]:
    """Return the same product in NumPy, float32 [N]."""
    digits = activations.quantize(x[None], matrix.group_size, Activations.INT8)
    stored = np.stack([matrix.codes & np.uint8(15), matrix.codes >> np.uint8(4)], axis=1)
    halves = np.empty_like(stored)
    halves[..., _LINE] = stored
    codes = (halves.transpose(0, 1, 3, 2).reshape(-1, matrix.columns).astype(np.int32) ^ 8) - 8
    scales = matrix.scales.view(np.float16).astype(np.float32)
    out = np.zeros(len(codes), np.float32)
    for group in range(scales.shape[1]):
        at = slice(group * matrix.group_size, (group + 1) * matrix.group_size)
        total = (codes[:, at] @ digits.planes[0, 0, at]).astype(np.float32)
        out += total * (scales[:, group].reshape(-1) * digits.scales[0, group])
    return out[: matrix.rows]


def multiplier(matrix: ColumnMatrix, x: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """Return a call that multiplies by the columns of x that are not 0, ready to be repeated.

    Args:
        matrix: N by K.
        x: float32 [K], read at every call.

    Returns:
        A function that returns float32 [N rounded up to 128], the same array each time.
    """
    groups, width = matrix.scales.shape[1], padded_columns(matrix.columns) // 4
    numbers = _Numbers(matrix.columns, matrix.group_size, groups, width)
    out = np.empty(len(matrix.codes) * BLOCK, np.float32)
    arguments = (_isa.best(), numbers, x, matrix.codes, matrix.scales, out)
    run = entry(multiply, *arguments)

    def call() -> NDArray[np.float32]:
        run(*arguments)
        return out

    return call


def _four_columns(r):
    """16 rows of four columns: bytes ``16 l + 4 r + j`` of each, side by side."""

    def emit(builder, a, b, c, d):
        first = 8 * (r // 2)
        bytes_ = [s + 16 * lane + first + i for lane in range(4) for i in range(8) for s in (0, 64)]
        words = [
            s + 8 * lane + 4 * (r % 2) + j for lane in range(4) for j in range(4) for s in (0, 32)
        ]
        order = ir.Constant(ir.VectorType(ir.IntType(32), 64), bytes_)
        halves = ir.VectorType(I16, 32)
        left = builder.bitcast(builder.shuffle_vector(a, b, order), halves)
        right = builder.bitcast(builder.shuffle_vector(c, d, order), halves)
        order = ir.Constant(ir.VectorType(ir.IntType(32), 32), words)
        return builder.bitcast(builder.shuffle_vector(left, right, order), LANES)

    return operation(emit, i8x64, i8x64, i8x64, i8x64, i8x64)


_ROWS0, _ROWS1, _ROWS2, _ROWS3 = (_four_columns(r) for r in range(4))


@jit
def _kept(digits, begin, end, at, places, packed):
    """List the columns of a group that are not 0, in fours; return where the list ends."""
    for k in range(begin, end):
        if digits[k]:
            places[at], packed[at] = k, digits[k]
            at += 1
    while at % 4:
        places[at], packed[at] = begin, 0
        at += 1
    return at


@jit
def _blocks(isa, m, codes, scales, places, packed, ends, sums, of_x, out):
    """Multiply all blocks by the columns listed in ``places``, whose digits are ``packed``.

    ``ends`` is where a group's list begins and ends; sums of digits and scales are by group.
    """
    groups = m.groups
    x_at, out_at = np.int64(packed.ctypes.data), np.int64(out.ctypes.data)
    for block in range(len(codes)):
        lines = np.int64(codes[block].ctypes.data)
        a0, a1, a2, a3 = no_floats(), no_floats(), no_floats(), no_floats()
        b0, b1, b2, b3 = no_floats(), no_floats(), no_floats(), no_floats()
        for group in range(groups):
            low0 = low1 = low2 = low3 = all_sums(np.int32(-8) * sums[group])
            high0, high1, high2, high3 = no_sums(), no_sums(), no_sums(), no_sums()
            for i in range(ends[group], ends[group + 1], 4):
                prefetch(lines + 64 * places[i + AHEAD])
                prefetch(lines + 64 * places[i + AHEAD + 1])
                prefetch(lines + 64 * places[i + AHEAD + 2])
                prefetch(lines + 64 * places[i + AHEAD + 3])
                p, q = load_lanes(lines + 64 * places[i]), load_lanes(lines + 64 * places[i + 1])
                r, s = (
                    load_lanes(lines + 64 * places[i + 2]),
                    load_lanes(lines + 64 * places[i + 3]),
                )
                four = load_i32(x_at + i)
                c, d, e, f = low_nibbles(p), low_nibbles(q), low_nibbles(r), low_nibbles(s)
                low0 = dot(isa, low0, _ROWS0(c, d, e, f), four)
                low1 = dot(isa, low1, _ROWS1(c, d, e, f), four)
                low2 = dot(isa, low2, _ROWS2(c, d, e, f), four)
                low3 = dot(isa, low3, _ROWS3(c, d, e, f), four)
                c, d = high_lanes(isa, p), high_lanes(isa, q)
                e, f = high_lanes(isa, r), high_lanes(isa, s)
                high0 = dot(isa, high0, _ROWS0(c, d, e, f), four)
                high1 = dot(isa, high1, _ROWS1(c, d, e, f), four)
                high2 = dot(isa, high2, _ROWS2(c, d, e, f), four)
                high3 = dot(isa, high3, _ROWS3(c, d, e, f), four)
            at, scale = np.int64(scales[block, group].ctypes.data), of_x[group]
            offset = all_sums(np.int32(-8) * sums[group])
            a0 = add_group(a0, to_float(low0), at, scale)
            a1 = add_group(a1, to_float(low1), at + 32, scale)
            a2 = add_group(a2, to_float(low2), at + 64, scale)
            a3 = add_group(a3, to_float(low3), at + 96, scale)
            b0 = add_group(b0, to_float(add_i(offset, high_sums(isa, high0))), at + 128, scale)
            b1 = add_group(b1, to_float(add_i(offset, high_sums(isa, high1))), at + 160, scale)
            b2 = add_group(b2, to_float(add_i(offset, high_sums(isa, high2))), at + 192, scale)
            b3 = add_group(b3, to_float(add_i(offset, high_sums(isa, high3))), at + 224, scale)
        to = out_at + 4 * BLOCK * block
        store_floats(to, a0)
        store_floats(to + 64, a1)
        store_floats(to + 128, a2)
        store_floats(to + 192, a3)
        store_floats(to + 256, b0)
        store_floats(to + 320, b1)
        store_floats(to + 384, b2)
        store_floats(to + 448, b3)


_multiply_blocks = by_isa(lambda isa: columns_avx2.blocks if isa.isa == "avx2" else _blocks)


@jit
def multiply(isa, m, x, codes, scales, out):
    """Multiply all blocks; ``out`` float32 [blocks * 128]."""
    groups = m.groups
    digits, of_x = np.empty(4 * m.quads, np.int8), np.empty(groups, np.float32)
    sums, ends = np.empty(groups, np.int32), np.zeros(groups + 1, np.int64)
    places = np.zeros(4 * m.quads + 4 * groups + AHEAD + 4, np.int64)
    packed = np.zeros(4 * m.quads + 4 * groups + 4, np.int8)
    quantize(m, 1, np.int64(x.ctypes.data), digits, of_x, sums)
    for group in range(groups):
        begin = group * m.group_size
        end = min(begin + m.group_size, m.columns)
        ends[group + 1] = _kept(digits, begin, end, ends[group], places, packed)
    _multiply_blocks(isa, m, codes, scales, places, packed, ends, sums, of_x, out)
