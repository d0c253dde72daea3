"""AVX2 kernel for products that skip columns; ``columns.py`` says how weights lie.

Two columns side by side make pairs, whose products are added up in one word of 16 bits a row. With
digits of at most 127 the sum of 32 columns fits in it, however it wraps on the way.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from edgesparse_kernels._avx2_bytes import add_products, i16x32
from edgesparse_kernels._jit import jit
from edgesparse_kernels._places import high_nibbles
from edgesparse_kernels._simd import (
    I16,
    LANES,
    SUMS,
    add_i,
    address,
    and_lanes,
    broadcast,
    i8x64,
    i32x16,
    int32,
    load_as,
    load_floats,
    load_lanes,
    no_floats,
    no_sums,
    operation,
    pick,
    prefetch,
    store_floats,
    to_float,
    xor_lanes,
)
from edgesparse_kernels.tiles import add_group

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

BLOCK = 128
AHEAD = 24  # kept columns by which lines are asked for before they are used
_COLUMNS_AT_ONCE = 32


def _side_by_side(second):
    """The first or second eight of every 16 bytes of two lines, in pairs."""
    order = [s + 16 * lane + 8 * second + i for lane in range(4) for i in range(8) for s in (0, 64)]
    places = ir.Constant(ir.VectorType(ir.IntType(32), 64), order)
    return operation(lambda b, x, y: b.shuffle_vector(x, y, places), i8x64, i8x64, i8x64)


def _rows(second):
    """Sixteen rows in order, of pairs made of an eight of every 16 bytes."""
    order = [8 * lane + 4 * second + j for lane in range(4) for j in range(4)]
    return operation(lambda b, x: b.sext(pick(b, x, order), SUMS), i32x16, i16x32)


def _two_repeated(builder, at):
    two = load_as(builder, at, I16)
    return builder.bitcast(broadcast(builder, two, ir.VectorType(I16, 32)), LANES)


def _all_pairs(builder, value):
    return broadcast(builder, builder.trunc(value, I16), i16x32.llvm)


_FIRST, _SECOND = _side_by_side(0), _side_by_side(1)
_EVEN, _ODD = _rows(0), _rows(1)
two_repeated = operation(_two_repeated, i8x64, address)
all_pairs = operation(_all_pairs, i16x32, int32)  # the low 16 bits of a number


@jit
def _add_rows(to, group, first, scale_at, scale):
    """Add a group's sums of 16 rows to the floats at ``to``, which the first group begins."""
    before = no_floats() if first else load_floats(to)
    store_floats(to, add_group(before, to_float(group), scale_at, scale))


@jit
def blocks(isa, m, codes, scales, places, packed, ends, sums, of_x, out):
    """Multiply all blocks; the arguments are those of ``columns._blocks``."""
    x_at, out_at = np.int64(packed.ctypes.data), np.int64(out.ctypes.data)
    for block in range(len(codes)):
        lines = np.int64(codes[block].ctypes.data)
        for group in range(m.groups):
            s0, s1, s2, s3 = no_sums(), no_sums(), no_sums(), no_sums()
            s4, s5, s6, s7 = no_sums(), no_sums(), no_sums(), no_sums()
            for begin in range(ends[group], ends[group + 1], _COLUMNS_AT_ONCE):
                end = min(begin + _COLUMNS_AT_ONCE, ends[group + 1])
                taken = np.int32(0)
                for i in range(begin, end):
                    taken -= np.int32(8) * packed[i]
                a, b, c, d = all_pairs(taken), all_pairs(taken), all_pairs(taken), all_pairs(taken)
                for i in range(begin, end, 2):
                    prefetch(lines + 64 * places[i + AHEAD])
                    prefetch(lines + 64 * places[i + AHEAD + 1])
                    p, q = (
                        load_lanes(lines + 64 * places[i]),
                        load_lanes(lines + 64 * places[i + 1]),
                    )
                    p, q = xor_lanes(p, 0x88), xor_lanes(q, 0x88)
                    first, second, two = _FIRST(p, q), _SECOND(p, q), two_repeated(x_at + i)
                    a = add_products(a, and_lanes(first, 15), two)
                    b = add_products(b, and_lanes(second, 15), two)
                    c = add_products(c, high_nibbles(first), two)
                    d = add_products(d, high_nibbles(second), two)
                s0, s1 = add_i(s0, _EVEN(a)), add_i(s1, _ODD(a))
                s2, s3 = add_i(s2, _EVEN(b)), add_i(s3, _ODD(b))
                s4, s5 = add_i(s4, _EVEN(c)), add_i(s5, _ODD(c))
                s6, s7 = add_i(s6, _EVEN(d)), add_i(s7, _ODD(d))
            at, scale = np.int64(scales[block, group].ctypes.data), of_x[group]
            to = out_at + 4 * BLOCK * block
            _add_rows(to, s0, group == 0, at, scale)
            _add_rows(to + 64, s1, group == 0, at + 32, scale)
            _add_rows(to + 128, s2, group == 0, at + 64, scale)
            _add_rows(to + 192, s3, group == 0, at + 96, scale)
            _add_rows(to + 256, s4, group == 0, at + 128, scale)
            _add_rows(to + 320, s5, group == 0, at + 160, scale)
            _add_rows(to + 384, s6, group == 0, at + 192, scale)
            _add_rows(to + 448, s7, group == 0, at + 224, scale)
