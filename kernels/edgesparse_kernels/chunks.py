"""Chunks of codes with zeros, or in tables: decoded to float32 on vectors, any bits.

A chunk of at most 32 quads of a tile becomes weights [quads, 4 columns, 16 rows] in the first-level
cache; products and decoding read them there. Lanes that are not kept first get the code of value 0:
the zero of their row, or an index one past the table, where a 0 stands.
"""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic

from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import (
    F32,
    FLOATS,
    I1,
    I8,
    I32,
    I64,
    LANES,
    SUMS,
    add_i,
    address,
    as_words,
    broadcast,
    byte_as_float,
    f32x16,
    function,
    i8x64,
    i32x16,
    int32,
    load_as,
    load_halves,
    load_lanes,
    load_sums,
    load_u64,
    multiply,
    operation,
    pick,
    splat,
    store_floats,
    store_lanes,
    subtract_f,
    to_int,
)
from edgesparse_kernels.groups import begin_streams, decode_group

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


def _where(builder, mask, kept, others):
    """Return ``kept`` where the mask is set, else ``others``."""
    return builder.select(builder.bitcast(mask, ir.VectorType(I1, 64)), kept, others)


def _zero_bytes(builder, at, sign):
    """Return 16 int8 at an address plus ``sign``: codes as decoded lanes have them."""
    stored = load_as(builder, at, ir.VectorType(I8, 16))
    return builder.add(stored, broadcast(builder, builder.trunc(sign, I8), stored.type))


def _zero_lanes(builder, at, sign):
    return pick(builder, _zero_bytes(builder, at, sign), [lane // 4 for lane in range(64)])


def _zero_floats(builder, at, sign):
    return builder.uitofp(_zero_bytes(builder, at, sign), FLOATS)


def _all_lanes(builder, value):
    return broadcast(builder, builder.trunc(value, I8), LANES)


def _gather(builder, at, places):
    """Return the float32 at 16 places of an array."""
    wide = ir.VectorType(I64, 16)
    offsets = builder.shl(builder.zext(places, wide), splat(wide, 2))
    pointers = ir.VectorType(F32.as_pointer(), 16)
    each = builder.inttoptr(builder.add(broadcast(builder, at, wide), offsets), pointers)
    every = ir.VectorType(I1, 16)
    name = "llvm.masked.gather.v16f32.v16p0"
    callee = function(builder, name, FLOATS, pointers, I32, every, FLOATS)
    return builder.call(callee, [each, ir.Constant(I32, 4), splat(every, 1), splat(FLOATS, 0.0)])


def _permuted(builder, at, places):
    """Return the float32 at 16 places of at most 16, or 0: one permutation of a register."""
    name, kind = "llvm.x86.avx512.permvar.sf.512", places.type
    table = load_as(builder, at, FLOATS)
    found = builder.call(function(builder, name, FLOATS, FLOATS, kind), [table, places])
    inside = builder.icmp_unsigned("<", places, splat(kind, 16))
    return builder.select(inside, found, splat(FLOATS, 0.0))


@intrinsic
def _entries(typing, isa, at, places):
    """The entries at 16 places of one table of up to 16, 0 one past them."""
    emit = _permuted if isa.isa == "avx512" else _gather
    return f32x16(isa, address, i32x16), lambda context, builder, _, values: emit(
        builder, *values[1:]
    )


def _minus_times(builder, at, sign, factor):
    """Return minus ``factor`` times the codes that ``_zero_bytes`` gives, as int32."""
    codes = builder.zext(_zero_bytes(builder, at, sign), SUMS)
    return builder.mul(codes, broadcast(builder, builder.neg(factor), SUMS))


_where_lanes = operation(_where, i8x64, address, i8x64, i8x64)
lanes_of_zeros = operation(_zero_lanes, i8x64, address, address)
_floats_of_zeros = operation(_zero_floats, f32x16, address, address)
start_of_zeros = operation(_minus_times, i32x16, address, address, int32)
_every_lane = operation(_all_lanes, i8x64, address)
_gathered = operation(_gather, f32x16, address, i32x16)


@jit
def fill(m, tile, quad, count, lanes, others):
    """Put ``others`` into the lanes that are not kept."""
    row = m.mask + 8 * (tile * m.quads + quad)
    for i in range(count):
        kept = load_lanes(lanes + 64 * i)
        store_lanes(lanes + 64 * i, _where_lanes(load_u64(row + 8 * i), kept, others))


@jit
def _shifted(lanes, count, minus, scales, weights):
    """Write ``(code - zero) * scale`` of decoded quads to ``weights`` [count, 4, 16]."""
    for i in range(count):
        words, at = as_words(load_lanes(lanes + 64 * i)), weights + 256 * i
        store_floats(at, multiply(subtract_f(byte_as_float(words, 0), minus), scales))
        store_floats(at + 64, multiply(subtract_f(byte_as_float(words, 1), minus), scales))
        store_floats(at + 128, multiply(subtract_f(byte_as_float(words, 2), minus), scales))
        store_floats(at + 192, multiply(subtract_f(byte_as_float(words, 3), minus), scales))


@jit
def _looked_up(lanes, count, table, begins, weights):
    """Write the entries of decoded quads to ``weights`` [count, 4, 16]."""
    for i in range(count):
        words, at = as_words(load_lanes(lanes + 64 * i)), weights + 256 * i
        store_floats(at, _gathered(table, add_i(begins, to_int(byte_as_float(words, 0)))))
        store_floats(at + 64, _gathered(table, add_i(begins, to_int(byte_as_float(words, 1)))))
        store_floats(at + 128, _gathered(table, add_i(begins, to_int(byte_as_float(words, 2)))))
        store_floats(at + 192, _gathered(table, add_i(begins, to_int(byte_as_float(words, 3)))))


@jit
def _looked_up_in_one(isa, lanes, count, table, weights):
    """The same where all rows of the tile have the table at ``table``."""
    for i in range(count):
        words, at = as_words(load_lanes(lanes + 64 * i)), weights + 256 * i
        store_floats(at, _entries(isa, table, to_int(byte_as_float(words, 0))))
        store_floats(at + 64, _entries(isa, table, to_int(byte_as_float(words, 1))))
        store_floats(at + 128, _entries(isa, table, to_int(byte_as_float(words, 2))))
        store_floats(at + 192, _entries(isa, table, to_int(byte_as_float(words, 3))))


@jit
def decode_chunk(isa, m, numbers, tile, group, quad, count, at, at_high, lanes, begins, weights):
    """Decode ``count`` quads of a group to ``weights``; streams are read on from ``at``."""
    zeros, table, table_rows, size = numbers
    decode_group(isa, m, tile, quad, count, at, at_high, lanes)
    sign = 1 << (m.bits - 1)
    if size:
        if not m.is_dense:
            fill(m, tile, quad, count, lanes, _every_lane(size - 1))
        if table_rows % 16 == 0:
            one = table + 4 * (16 * tile // table_rows * size if table_rows else 0)
            _looked_up_in_one(isa, lanes, count, one, weights)
        else:
            _looked_up(lanes, count, table, load_sums(begins), weights)
        return
    place = tile * m.groups + group
    if not m.is_dense:
        fill(m, tile, quad, count, lanes, lanes_of_zeros(zeros + 16 * place, sign))
    minus, scales = _floats_of_zeros(zeros + 16 * place, sign), load_halves(m.scales + 32 * place)
    _shifted(lanes, count, minus, scales, weights)


@jit
def begin_tile(m, numbers, tile, at, at_high, begins):
    """Point the streams at a tile, and its 16 rows at their tables."""
    begin_streams(m, tile, at, at_high)
    _, _, table_rows, size = numbers
    for row in range(16):
        real = min(16 * tile + row, m.rows - 1)
        begins[row] = real // table_rows * size if table_rows else 0
