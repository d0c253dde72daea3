"""Groups of a tile decoded to lanes in the cache, any bits; and from there to float32 weights."""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._isa import expand, expand_low
from edgesparse_kernels._jit import jit, jit_into
from edgesparse_kernels._simd import (
    all_floats,
    and_lanes,
    bits_of,
    four_times,
    load_halves,
    load_lanes,
    load_u32,
    load_u64,
    low_nibbles,
    multiply,
    or_lanes,
    popcount,
    prefetch,
    quarter_floats,
    shift_lanes_2,
    store_four,
    store_lanes,
    subtract_f,
    xor_lanes,
)
from edgesparse_kernels.tiles import AHEAD, CHUNK, MASK_AHEAD

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_QUARTER0, _QUARTER1, _QUARTER2, _QUARTER3 = quarter_floats
_REPEAT0, _REPEAT1, _REPEAT2, _REPEAT3 = four_times


@jit
def _decode_plane(isa, m, mask_row, at, quad, count, width, lanes, shift):
    """Decode one plane of the next ``count`` quads to ``lanes``, any of them first.

    ``at`` is an array of the streams' addresses. With ``shift`` the bits are ORed in above.
    """
    streams = 8 // width
    low_bits = (1 << width) - 1
    for i in range(count):
        j = (quad + i) % streams
        if m.is_dense:
            bytes_ = load_lanes(at[j])
            at[j] += 64
        else:
            mask = load_u64(mask_row + 8 * (quad + i))
            bytes_ = expand(isa, at[j], mask)
            at[j] += popcount(mask)
        prefetch(at[j] + AHEAD)
        code = bits_of(bytes_, width * j, low_bits)
        if shift:
            code = or_lanes(load_lanes(lanes + 64 * i), shift_lanes_2(code))
        store_lanes(lanes + 64 * i, code)


@jit_into
def _decode_octets(isa, m, mask_row, at, quad, count, lanes):
    """Decode 4-bit codes, two quads at a time, to ``lanes`` as code + 8."""
    evens, odds = at[0], at[1]
    if m.is_dense:
        for i in range(0, count, 2):
            both = load_lanes(evens)
            prefetch(evens + AHEAD)
            store_lanes(lanes + 64 * i, low_nibbles(both))
            store_lanes(lanes + 64 * i + 64, low_nibbles(bits_of(both, 4, 15)))
            evens += 64
    else:
        for i in range(0, count, 2):
            mask_even = load_u64(mask_row + 8 * (quad + i))
            mask_odd = load_u64(mask_row + 8 * (quad + i) + 8)
            prefetch(mask_row + 8 * (quad + i) + MASK_AHEAD)
            prefetch(evens + AHEAD)
            store_lanes(lanes + 64 * i, expand_low(isa, evens, mask_even))
            both = expand(isa, odds, mask_odd)
            store_lanes(lanes + 64 * i + 64, low_nibbles(bits_of(both, 4, 15)))
            evens += popcount(mask_even)
            odds += popcount(mask_odd)
    at[0], at[1] = evens, odds


@jit
def _decode_quarters(isa, m, mask_row, at, quad, count, width, lanes):
    """Decode 1- or 2-bit planes whose streams all begin at ``quad``, stream by stream."""
    streams, low_bits = 8 // width, (1 << width) - 1
    for j in range(streams):
        here, shift = at[j], width * j
        for i in range(j, count, streams):
            if m.is_dense:
                bytes_ = load_lanes(here)
                here += 64
            else:
                mask = load_u64(mask_row + 8 * (quad + i))
                bytes_ = expand(isa, here, mask)
                here += popcount(mask)
            code = bits_of(bytes_, shift, low_bits)
            if width == 1:  # the high plane of 3 bits, above the two low ones
                code = or_lanes(load_lanes(lanes + 64 * i), shift_lanes_2(code))
            store_lanes(lanes + 64 * i, code)
        at[j] = here


@jit
def _begin_plane(m, tile, codes, offsets, width, at):
    """Point every stream of a plane at the tile's first byte."""
    begin = codes + tile * (64 * m.quads * width // 8)
    if not m.is_dense:
        begin = codes + load_u32(offsets + 4 * tile)
    at[:] = begin


@jit
def begin_streams(m, tile, at, at_high):
    """Point the streams of both planes at the tile's first bytes; only 3 bits have a second."""
    _begin_plane(m, tile, m.codes, m.offsets, 2 if m.bits == 3 else m.bits, at)
    if m.bits == 3:
        _begin_plane(m, tile, m.codes_high, m.offsets_high, 1, at_high)


@jit_into
def decode_group(isa, m, tile, quad, count, at, at_high, lanes):
    """Decode quads ``quad : quad + count`` to ``lanes`` as code + 2**(bits - 1)."""
    mask_row = m.mask + tile * (8 * m.quads)
    if m.bits == 4:
        _decode_octets(isa, m, mask_row, at, quad, count, lanes)
        return
    width = 2 if m.bits == 3 else m.bits
    if width == 2 and quad % 4 == 0 and count % 4 == 0:
        _decode_quarters(isa, m, mask_row, at, quad, count, 2, lanes)
    else:
        _decode_plane(isa, m, mask_row, at, quad, count, width, lanes, 0)
    if m.bits == 3 and quad % 8 == 0 and count % 8 == 0:
        _decode_quarters(isa, m, mask_row, at_high, quad, count, 1, lanes)
    elif m.bits == 3:
        _decode_plane(isa, m, mask_row, at_high, quad, count, 1, lanes, 2)
    for i in range(count):
        store_lanes(lanes + 64 * i, xor_lanes(load_lanes(lanes + 64 * i), 1 << (m.bits - 1)))


@jit
def spread(isa, m, out):
    """Write a 4-bit bitmask as dense codes into ``out`` uint8 [tiles * octets * 64]."""
    to = np.int64(out.ctypes.data)
    for tile in range((m.rows + 15) // 16):
        evens = m.codes + load_u32(m.offsets + 4 * tile)
        odds = evens
        mask_at = m.mask + tile * (8 * m.quads)
        for _ in range(m.quads // 2):
            mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
            low = and_lanes(expand(isa, evens, mask_even), 15)
            high = and_lanes(expand(isa, odds, mask_odd), 0xF0)
            store_lanes(to, or_lanes(low, high))
            evens += popcount(mask_even)
            odds += popcount(mask_odd)
            mask_at += 16
            to += 64


@jit
def _store_cell(lanes, offset, scales, at, stride):
    """Write the 16 rows of a cell's four columns to ``at``, rows ``stride`` bytes apart."""
    step = 4 * stride
    first = multiply(subtract_f(_QUARTER0(lanes), offset), _REPEAT0(scales))
    second = multiply(subtract_f(_QUARTER1(lanes), offset), _REPEAT1(scales))
    third = multiply(subtract_f(_QUARTER2(lanes), offset), _REPEAT2(scales))
    fourth = multiply(subtract_f(_QUARTER3(lanes), offset), _REPEAT3(scales))
    store_four(at, stride, first)
    store_four(at + step, stride, second)
    store_four(at + 2 * step, stride, third)
    store_four(at + 3 * step, stride, fourth)


@jit
def decode_tiles(isa, m, scratch, thread, out, first, last):
    """Write the rows of the tiles ``first:last`` into ``out`` [N, K]."""
    lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
    edge = scratch.acc[thread]
    edge_at, out_at = np.int64(edge.ctypes.data), np.int64(out.ctypes.data)
    at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
    offset = all_floats(np.float32(1 << (m.bits - 1)))
    for tile in range(first, last):
        begin_streams(m, tile, at, at_high)
        rows = min(16, m.rows - 16 * tile)
        for group in range(m.groups):
            scales = load_halves(m.scales + 32 * (tile * m.groups + group))
            begin = group * m.group_size // 4
            end = min(begin + m.group_size // 4, m.quads)
            for quad in range(begin, end, CHUNK):
                count = min(CHUNK, end - quad)
                decode_group(isa, m, tile, quad, count, at, at_high, lanes)
                for i in range(count):
                    column = 4 * (quad + i)
                    cell = load_lanes(lanes + 64 * i)
                    if rows == 16 and column + 4 <= m.columns:
                        to = out_at + 4 * (16 * tile * m.columns + column)
                        _store_cell(cell, offset, scales, to, 4 * m.columns)
                    elif column < m.columns:  # only what belongs to the matrix
                        _store_cell(cell, offset, scales, edge_at, 16)
                        for row in range(rows):
                            for c in range(min(4, m.columns - column)):
                                out[16 * tile + row, column + c] = edge[row // 4, 4 * (row % 4) + c]
