"""Codes with zeros, or in tables: decoded to float32 a chunk at a time, on vectors, any bits.

A chunk of at most 32 quads of a tile becomes weights [quads, 4 columns, 16 rows] in the first-level
cache; products and decoding read them there. Lanes that are not kept first get the code of value 0:
the zero of their row, or an index one past the table, where a 0 stands.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import prange
from numba.extending import intrinsic

from edgesparse_kernels._jit import jit, serial_and_parallel
from edgesparse_kernels._simd import (
    F32,
    FLOATS,
    I1,
    I8,
    I32,
    I64,
    LANES,
    add_f,
    add_i,
    address,
    all_floats,
    as_words,
    broadcast,
    byte_as_float,
    f32x16,
    function,
    fused,
    i8x64,
    i32x16,
    load_as,
    load_float,
    load_floats,
    load_halves,
    load_lanes,
    load_sums,
    load_u64,
    multiply,
    no_floats,
    operation,
    pick,
    splat,
    store_floats,
    store_lanes,
    subtract_f,
    to_int,
)
from edgesparse_kernels.groups import begin_streams, decode_group
from edgesparse_kernels.tiles import CHUNK, store_tile

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


_where_lanes = operation(_where, i8x64, address, i8x64, i8x64)
_lanes_of_zeros = operation(_zero_lanes, i8x64, address, address)
_floats_of_zeros = operation(_zero_floats, f32x16, address, address)
_every_lane = operation(_all_lanes, i8x64, address)
_gathered = operation(_gather, f32x16, address, i32x16)


@jit
def _fill(m, tile, quad, count, lanes, others):
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
def _chunk(isa, m, numbers, tile, group, quad, count, at, at_high, lanes, begins, weights):
    """Decode ``count`` quads of a group to ``weights``; streams are read on from ``at``."""
    zeros, table, table_rows, size = numbers
    decode_group(isa, m, tile, quad, count, at, at_high, lanes)
    sign = 1 << (m.bits - 1)
    if size:
        if not m.is_dense:
            _fill(m, tile, quad, count, lanes, _every_lane(size - 1))
        if table_rows % 16 == 0:
            one = table + 4 * (16 * tile // table_rows * size if table_rows else 0)
            _looked_up_in_one(isa, lanes, count, one, weights)
        else:
            _looked_up(lanes, count, table, load_sums(begins), weights)
        return
    place = tile * m.groups + group
    if not m.is_dense:
        _fill(m, tile, quad, count, lanes, _lanes_of_zeros(zeros + 16 * place, sign))
    minus, scales = _floats_of_zeros(zeros + 16 * place, sign), load_halves(m.scales + 32 * place)
    _shifted(lanes, count, minus, scales, weights)


@jit
def _begin_tile(m, numbers, tile, at, at_high, begins):
    """Point the streams at a tile, and its 16 rows at their tables."""
    begin_streams(m, tile, m.codes, m.offsets, 2 if m.bits == 3 else m.bits, at)
    if m.bits == 3:
        begin_streams(m, tile, m.codes_high, m.offsets_high, 1, at_high)
    _, _, table_rows, size = numbers
    for row in range(16):
        real = min(16 * tile + row, m.rows - 1)
        begins[row] = real // table_rows * size if table_rows else 0


@jit
def _add_chunk(weights, count, x, total):
    """Return ``total`` plus the products of ``count`` decoded quads and the floats at ``x``."""
    sum1, sum2, sum3 = no_floats(), no_floats(), no_floats()
    for i in range(count):
        at, place = weights + 256 * i, x + 16 * i
        total = fused(load_floats(at), all_floats(load_float(place)), total)
        sum1 = fused(load_floats(at + 64), all_floats(load_float(place + 4)), sum1)
        sum2 = fused(load_floats(at + 128), all_floats(load_float(place + 8)), sum2)
        sum3 = fused(load_floats(at + 192), all_floats(load_float(place + 12)), sum3)
    return add_f(add_f(total, sum1), add_f(sum2, sum3))


def _multiply(isa, m, numbers, x_padded, threads, scratch, chunks, out):
    """``out[b] = weights @ x[b]`` for float32 activations [M, padded K]."""
    batch, tiles = len(x_padded), (m.rows + 15) // 16
    x_at, out_at = np.int64(x_padded.ctypes.data), np.int64(out.ctypes.data)
    for thread in prange(threads):
        lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
        acc = np.int64(scratch.acc[thread].ctypes.data)
        at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
        begins = scratch.totals[thread, 0]
        begins_at = np.int64(begins.ctypes.data)
        weights = np.int64(chunks[thread].ctypes.data)
        for tile in range(tiles * thread // threads, tiles * (thread + 1) // threads):
            _begin_tile(m, numbers, tile, at, at_high, begins)
            for row in range(batch):
                store_floats(acc + 64 * row, no_floats())
            for group in range(m.groups):
                begin = group * m.group_size // 4
                end = min(begin + m.group_size // 4, m.quads)
                for quad in range(begin, end, CHUNK):
                    count = min(CHUNK, end - quad)
                    _chunk(
                        isa, m, numbers, tile, group, quad, count, at, at_high, lanes, begins_at,
                        weights,
                    )  # fmt: skip
                    for row in range(batch):
                        x = x_at + 16 * (row * m.quads + quad)
                        total = _add_chunk(weights, count, x, load_floats(acc + 64 * row))
                        store_floats(acc + 64 * row, total)
            for row in range(batch):
                store_tile(m, tile, load_floats(acc + 64 * row), out_at + 4 * row * m.rows)


def _decode(isa, m, numbers, threads, scratch, chunks, out):
    """Write the weights into ``out`` [N, K]."""
    tiles = (m.rows + 15) // 16
    for thread in prange(threads):
        lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
        at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
        begins = scratch.totals[thread, 0]
        begins_at = np.int64(begins.ctypes.data)
        weights = chunks[thread]
        weights_at = np.int64(weights.ctypes.data)
        for tile in range(tiles * thread // threads, tiles * (thread + 1) // threads):
            _begin_tile(m, numbers, tile, at, at_high, begins)
            rows = min(16, m.rows - 16 * tile)
            for group in range(m.groups):
                begin = group * m.group_size // 4
                end = min(begin + m.group_size // 4, m.quads)
                for quad in range(begin, end, CHUNK):
                    count = min(CHUNK, end - quad)
                    _chunk(
                        isa, m, numbers, tile, group, quad, count, at, at_high, lanes, begins_at,
                        weights_at,
                    )  # fmt: skip
                    used = min(4 * count, m.columns - 4 * quad)
                    for row in range(rows):
                        for k in range(used):
                            out[16 * tile + row, 4 * quad + k] = weights[16 * k + row]


multiply_floats, multiply_floats_parallel = serial_and_parallel(_multiply)
decode, decode_parallel = serial_and_parallel(_decode)
