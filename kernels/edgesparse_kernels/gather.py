"""AVX-512 kernels for structured masks, matrix-vector with int8 or 16-bit activations.

nm4 and n64 gather the activations that the kept weights meet, so nothing is expanded; column16
packs the activations of a tile's columns once and goes on as dense; block16x8 visits kept blocks.
Weights enter as ``code + 8``; what that adds is taken off by a sum of the same activations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from edgesparse_kernels._avx512 import (
    compress,
    dot_lanes,
    eight_repeated,
    high_nibbles,
    permute,
    places_in_octet,
    shuffle,
    window_places,
)
from edgesparse_kernels._isa import dot, high_lanes, high_sums
from edgesparse_kernels._jit import jit, serial_and_parallel
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    and_lanes,
    eights,
    load_i32,
    load_lanes,
    load_u16,
    load_u32,
    load_u64,
    low_nibbles,
    multiply,
    no_floats,
    no_lanes,
    no_sums,
    popcount,
    prefetch,
    store_i32,
    store_lanes,
    subtract_i,
    sum_i,
    to_float,
    trailing_zeros,
)
from edgesparse_kernels.tiles import AHEAD, SCALES_AHEAD, add_group, quantize, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

NM4, N64, COLUMN16, BLOCK16X8 = range(4)
_FIRST, _SECOND, _THIRD, _FOURTH = window_places


class GatherOperand(NamedTuple):
    """A structured matrix as numbers: sizes, and the addresses of its buffers."""

    layout: int
    rows: int
    columns: int
    group_size: int
    groups: int
    quads: int
    of_64: int
    places: int
    kept: int
    codes: int
    offsets: int
    scales: int


@jit
def _gathered(isa, even, odd, minus, lanes, first, second):
    """Add the products of both halves of ``lanes`` with gathered activations."""
    even = dot_lanes(even, low_nibbles(lanes), first)
    odd = dot_lanes(odd, high_lanes(isa, lanes), second)
    minus = dot_lanes(dot_lanes(minus, eights(), first), eights(), second)
    return even, odd, minus


@jit
def _nm4_group(isa, m, codes, index, x, steps):
    """Sums of ``steps`` times 32 columns from the digits at ``x``."""
    even, odd, minus = no_sums(), no_sums(), no_sums()
    even2, odd2, minus2 = no_sums(), no_sums(), no_sums()
    for step in range(steps):
        plane = load_lanes(index + 64 * step)
        at, column = codes + 128 * step, x + 32 * step
        prefetch(at + AHEAD)
        prefetch(at + AHEAD + 64)
        prefetch(index + 64 * step + AHEAD // 2)
        first = shuffle(eight_repeated(column), places_in_octet(plane, 0))
        second = shuffle(eight_repeated(column + 8), places_in_octet(plane, 1))
        even, odd, minus = _gathered(isa, even, odd, minus, load_lanes(at), first, second)
        first = shuffle(eight_repeated(column + 16), places_in_octet(plane, 2))
        second = shuffle(eight_repeated(column + 24), places_in_octet(plane, 3))
        even2, odd2, minus2 = _gathered(
            isa, even2, odd2, minus2, load_lanes(at + 64), first, second
        )
    total = add_i(add_i(even, even2), high_sums(isa, add_i(odd, odd2)))
    return subtract_i(total, add_i(minus, minus2))


@jit
def _n64_group(isa, m, codes, index, x, pairs):
    """Sums of ``pairs`` times 128 columns, two windows, from the digits at ``x``."""
    even, odd, minus = no_sums(), no_sums(), no_sums()
    even2, odd2, minus2 = no_sums(), no_sums(), no_sums()
    eighths = m.of_64 // 8
    for pair in range(pairs):
        for chunk in range(eighths):
            # Half a chunk is an eighth of a window; the second window begins in the middle.
            former = load_lanes(x + 128 * pair + 64 * (2 * chunk >= eighths))
            latter = load_lanes(x + 128 * pair + 64 * (2 * chunk + 1 >= eighths))
            low01, low23, high = load_lanes(index), load_lanes(index + 64), load_lanes(index + 128)
            prefetch(codes + AHEAD)
            prefetch(codes + AHEAD + 64)
            prefetch(index + AHEAD)
            prefetch(index + AHEAD + 64)
            prefetch(index + AHEAD + 128)
            first = permute(former, _FIRST(and_lanes(low01, 15), high))
            second = permute(former, _SECOND(high_nibbles(low01), high))
            even, odd, minus = _gathered(isa, even, odd, minus, load_lanes(codes), first, second)
            first = permute(latter, _THIRD(and_lanes(low23, 15), high))
            second = permute(latter, _FOURTH(high_nibbles(low23), high))
            even2, odd2, minus2 = _gathered(
                isa, even2, odd2, minus2, load_lanes(codes + 64), first, second
            )
            codes += 128
            index += 192
    total = add_i(add_i(even, even2), high_sums(isa, add_i(odd, odd2)))
    return subtract_i(total, add_i(minus, minus2))


@jit
def _column16_pack(m, kept, x, words, to):
    """Pack the digits of kept columns, 64 a word; return how many, and eight times their sum."""
    count, total = np.int64(0), no_sums()
    for word in range(words):
        mask = load_u64(kept + 8 * word)
        chosen = compress(load_lanes(x + 64 * word), mask)
        store_lanes(to + count, chosen)
        total = dot_lanes(total, eights(), chosen)
        count += popcount(mask)
    store_lanes(to + count, no_lanes())
    return count, sum_i(total)


@jit
def _column16_group(isa, codes, parity, quads, x, minus):
    """Sums of ``quads`` quads, the first in the low halves at ``codes`` if ``parity`` is 0."""
    even, odd = all_sums(-minus), no_sums()
    quad = 0
    if parity and quads:
        odd = dot(isa, odd, high_lanes(isa, load_lanes(codes)), load_i32(x))
        codes += 64
        quad = 1
    while quad + 2 <= quads:
        lanes = load_lanes(codes)
        prefetch(codes + AHEAD)
        even = dot(isa, even, low_nibbles(lanes), load_i32(x + 4 * quad))
        odd = dot(isa, odd, high_lanes(isa, lanes), load_i32(x + 4 * quad + 4))
        codes += 64
        quad += 2
    if quad < quads:
        even = dot(isa, even, low_nibbles(load_lanes(codes)), load_i32(x + 4 * quad))
    return add_i(even, high_sums(isa, odd))


@jit
def _block_group(isa, codes, kept, x, words):
    """Sums of ``words`` times 128 columns and how many blocks they took."""
    even, odd, minus = no_sums(), no_sums(), no_sums()
    count = np.int64(0)
    for word in range(words):
        mask = load_u16(kept + 2 * word)
        while mask:
            at = x + 128 * word + 8 * trailing_zeros(mask)
            lanes = load_lanes(codes + 64 * count)
            prefetch(codes + 64 * count + AHEAD)
            even = dot(isa, even, low_nibbles(lanes), load_i32(at))
            odd = dot(isa, odd, high_lanes(isa, lanes), load_i32(at + 4))
            minus = dot(isa, dot(isa, minus, eights(), load_i32(at)), eights(), load_i32(at + 4))
            count += 1
            mask &= mask - 1
    return subtract_i(add_i(even, high_sums(isa, odd)), minus), count


@jit
def _column16_tile(isa, m, tile, planes, digits, scales, room):
    """Return the products of a tile of whole columns.

    All groups are packed before any is multiplied: a load of what was just stored, but not by one
    store, waits until the stores are done.
    """
    code_at = m.codes + load_u32(m.offsets + 4 * tile)
    size = 4 * m.quads + 4 * m.groups + 64  # of one plane's packed digits
    counts, minus = room + planes * size, room + planes * size + 4 * m.groups
    for plane in range(planes):
        to = room + plane * size
        for group in range(m.groups):
            begin = group * m.group_size
            words = min(m.group_size, 4 * m.quads - begin) // 64
            kept = m.kept + tile * (m.quads // 2) + begin // 8
            x = digits + plane * 4 * m.quads + begin
            count, eight_times = _column16_pack(m, kept, x, words, to)
            quads = (count + 3) // 4
            store_i32(counts + 4 * group, np.int32(quads))
            store_i32(minus + 4 * (plane * m.groups + group), eight_times)
            to += 4 * quads
    acc, done = no_floats(), np.int64(0)
    for group in range(m.groups):
        scale_at = m.scales + 32 * (tile * m.groups + group)
        prefetch(scale_at + SCALES_AHEAD)
        quads = np.int64(load_i32(counts + 4 * group))
        at, parity, x = code_at + 64 * (done // 2), done % 2, room + 4 * done
        taken = load_i32(minus + 4 * group)
        total = to_float(_column16_group(isa, at, parity, quads, x, taken))
        if planes == 2:
            taken = load_i32(minus + 4 * (m.groups + group))
            low = to_float(_column16_group(isa, at, parity, quads, x + size, taken))
            total = add_f(multiply(total, all_floats(np.float32(256))), low)
        done += quads
        acc = add_group(acc, total, scale_at, scales[group])
    return acc


@jit
def _tile_group(isa, m, tile, group, code_at, blocks_done, x):
    """Return the sums of one plane of digits over a group of a tile, and the blocks it took."""
    begin = group * m.group_size
    length = min(m.group_size, 4 * m.quads - begin)
    if m.layout == NM4:
        index = m.places + tile * (8 * m.quads) + 2 * begin
        return _nm4_group(isa, m, code_at + 4 * begin, index, x + begin, length // 32), 0
    if m.layout == N64:
        chunks = (begin // 64) * m.of_64 // 16
        index = m.places + tile * (m.quads // 16 * m.of_64 // 16 * 192) + 192 * chunks
        return _n64_group(isa, m, code_at + 128 * chunks, index, x + begin, length // 128), 0
    kept = m.kept + tile * (m.quads // 16) + begin // 64
    return _block_group(isa, code_at + 64 * blocks_done, kept, x + begin, length // 128)


@jit
def _other_tile(isa, m, tile, planes, digits, scales):
    """Return the products of a tile of any other layout."""
    if m.layout == NM4:
        code_at = m.codes + tile * (16 * m.quads)
    elif m.layout == N64:
        code_at = m.codes + tile * (m.quads // 16 * m.of_64 // 16 * 128)
    else:
        code_at = m.codes + load_u32(m.offsets + 4 * tile)
    acc, done = no_floats(), np.int64(0)
    for group in range(m.groups):
        scale_at = m.scales + 32 * (tile * m.groups + group)
        prefetch(scale_at + SCALES_AHEAD)
        sums, blocks = _tile_group(isa, m, tile, group, code_at, done, digits)
        total = to_float(sums)
        if planes == 2:
            low, _ = _tile_group(isa, m, tile, group, code_at, done, digits + 4 * m.quads)
            total = add_f(multiply(total, all_floats(np.float32(256))), to_float(low))
        done += blocks
        acc = add_group(acc, total, scale_at, scales[group])
    return acc


def _run(isa, m, planes, x, threads, digits, scales, sums, packed, out):
    """``out[b] = weights @ x[b]``; ``packed`` int8 [threads, …] is room for packed digits."""
    tiles = (m.rows + 15) // 16
    for row in range(len(x)):
        x_at = np.int64(x.ctypes.data) + 4 * row * m.columns
        out_at = np.int64(out.ctypes.data) + 4 * row * m.rows
        quantize(m, planes, x_at, digits, scales, sums)
        at = np.int64(digits.ctypes.data)
        for thread in prange(threads):
            first, last = tiles * thread // threads, tiles * (thread + 1) // threads
            room = np.int64(packed[thread].ctypes.data)
            for tile in range(first, last):
                if m.layout == COLUMN16:
                    acc = _column16_tile(isa, m, tile, planes, at, scales, room)
                else:
                    acc = _other_tile(isa, m, tile, planes, at, scales)
                store_tile(m, tile, acc, out_at)


run, run_parallel = serial_and_parallel(_run)
