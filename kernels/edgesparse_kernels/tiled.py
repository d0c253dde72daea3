"""Vector kernels on tiles of 16 rows: matrix-vector and small batches, any bits, groups of octets.

One 64-byte register holds a cell, 16 rows by 4 columns, so a product with four activations leaves
one sum in the lane of each row. Matrix-vector with 4-bit codes goes straight from the packed bytes
to the products; everything else decodes a group of a tile to the cache and multiplies from there.

Integer sums are exact; floats are made of them by ``total * (weight scale * activation scale)``,
rounded at each step, group after group, so every instruction set gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgesparse_kernels._isa import (
    dot,
    dot_bytes,
    expand,
    expand_high,
    expand_low,
    high_float,
    high_lanes,
    high_sums,
    low_float,
)
from edgesparse_kernels._jit import jit, serial_and_parallel
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    as_words,
    bits_of,
    byte_as_float,
    float_of_bits,
    four_times,
    fused,
    largest,
    load_float,
    load_floats,
    load_halves,
    load_i32,
    load_lanes,
    load_sums,
    load_u32,
    load_u64,
    low_nibbles,
    magnitude_bits,
    maximum,
    multiply,
    no_floats,
    no_sums,
    or_lanes,
    popcount,
    prefetch,
    quarter_floats,
    round_even,
    shift_lanes_2,
    shift_left,
    shift_right,
    store_bytes,
    store_float,
    store_floats,
    store_four,
    store_lanes,
    store_sums,
    subtract_f,
    subtract_i,
    sum_i,
    to_float,
    to_int,
    xor_lanes,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


_QUARTER0, _QUARTER1, _QUARTER2, _QUARTER3 = quarter_floats
_REPEAT0, _REPEAT1, _REPEAT2, _REPEAT3 = four_times


class Operand(NamedTuple):
    """A matrix as numbers: sizes, and the addresses of its buffers."""

    rows: int
    columns: int
    bits: int
    group_size: int
    groups: int
    quads: int
    is_dense: int
    mask: int
    codes: int
    offsets: int
    codes_high: int
    offsets_high: int
    scales: int


class Scratch(NamedTuple):
    """Room to work in, made by the caller: kernels hold addresses into it, allocate nothing.

    digits int8 [M, planes * padded K], scales float32 [M, G], sums int32 [M, planes * G]; then by
    thread: lanes uint8 [threads, 2112], streams int64 [threads, 2, 8],
    totals int32 [threads, planes * M + 3, 16], acc float32 [threads, M, 16].
    """

    digits: NDArray[np.int8]
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]
    lanes: NDArray[np.uint8]
    streams: NDArray[np.int64]
    totals: NDArray[np.int32]
    acc: NDArray[np.float32]


CHUNK = 32  # quads decoded at once: 2 KiB of lanes, which stay in the first-level cache


# Bytes ahead of use at which streamed codes, masks and scales are asked for: without, a streamed
# product reaches two thirds of the memory's speed.
AHEAD, MASK_AHEAD, SCALES_AHEAD = 8192, 2048, 512


@jit
def _scale(x, begin, end, full):
    """Return (scale, its reciprocal) for the floats ``begin:end`` at address ``x``."""
    top = no_sums()
    k = begin
    while k + 16 <= end:
        top = maximum(top, magnitude_bits(load_sums(x + 4 * k)))
        k += 16
    bits = largest(top)
    while k < end:
        bits = max(bits, load_i32(x + 4 * k) & np.int32(0x7FFFFFFF))
        k += 1
    if bits >= np.int32(0x7F800000):  # infinity or NaN: the whole group counts as NaN
        return np.float32(np.nan), np.float32(0)
    scale = float_of_bits(bits) / full
    # Below the normal floats the reciprocal would overflow; such a group counts as zeros.
    if scale < np.float32(1.17549435e-38):
        return np.float32(0), np.float32(0)
    return scale, np.float32(1) / scale


@jit
def _quantize(m, planes, x, digits, scales, sums):
    """Digits [planes, padded K] int8, scales [G] and digit sums [planes, G] of one row ``x``."""
    padded, at = 4 * m.quads, np.int64(digits.ctypes.data)
    full = np.float32(32512) if planes == 2 else np.float32(127)
    for plane in range(planes):
        digits[plane * padded + m.columns : (plane + 1) * padded] = 0
    for group in range(m.groups):
        begin, end = group * m.group_size, min((group + 1) * m.group_size, m.columns)
        scale, inverse = _scale(x, begin, end, full)
        scales[group] = scale
        if inverse == 0:
            for plane in range(planes):
                digits[plane * padded + begin : plane * padded + end] = 0
        times = all_floats(inverse)
        high_total, low_total = no_sums(), no_sums()
        high_rest, low_rest = np.int32(0), np.int32(0)
        k = begin
        while k + 16 <= end and inverse > 0:
            value = to_int(round_even(multiply(load_floats(x + 4 * k), times)))
            if planes == 2:
                high = shift_right(add_i(value, all_sums(np.int32(128))), np.int32(8))
                low = subtract_i(value, shift_left(high, np.int32(8)))
                store_bytes(at + padded + k, low)
                low_total = add_i(low_total, low)
                value = high
            store_bytes(at + k, value)
            high_total = add_i(high_total, value)
            k += 16
        while k < end and inverse > 0:
            one = np.int32(np.rint(load_float(x + 4 * k) * inverse))
            if planes == 2:
                first = (one + np.int32(128)) >> np.int32(8)
                digits[padded + k] = one - (first << np.int32(8))
                low_rest += one - (first << np.int32(8))
                one = first
            digits[k] = one
            high_rest += one
            k += 1
        sums[group] = sum_i(high_total) + high_rest
        if planes == 2:
            sums[m.groups + group] = sum_i(low_total) + low_rest


@jit
def _store_tile(m, tile, sums, out):
    """Write the rows of a tile, those of padding left out, to the address ``out``."""
    if 16 * tile + 16 <= m.rows:
        store_floats(out + 64 * tile, sums)
        return
    rows = np.empty(16, np.float32)
    store_floats(np.int64(rows.ctypes.data), sums)
    for row in range(16 * tile, m.rows):
        store_float(out + 4 * row, rows[row % 16])


@jit
def _octets(m, group):
    """Return how many pairs of quads a group has; the last one may be shorter."""
    return min(m.group_size, 4 * m.quads - group * m.group_size) // 8


@jit
def _add_group(acc, total, scales, scale):
    """Return ``acc + total * (scales * scale)``, rounded at each step."""
    return add_f(acc, multiply(total, multiply(load_halves(scales), all_floats(scale))))


@jit
def _dense4_int8(isa, m, digits, scales, sums, out, first, last):
    """Tiles ``first:last`` of a dense 4-bit matrix by int8 activations."""
    for tile in range(first, last):
        at = m.codes + tile * (8 * 4 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x, acc = digits, no_floats()
        for group in range(m.groups):
            even, odd = all_sums(np.int32(-8) * sums[group]), no_sums()
            prefetch(scale_at + SCALES_AHEAD)
            for _ in range(_octets(m, group)):
                lanes = load_lanes(at)
                prefetch(at + AHEAD)
                even = dot(isa, even, low_nibbles(lanes), load_i32(x))
                odd = dot(isa, odd, high_lanes(isa, lanes), load_i32(x + 4))
                at += 64
                x += 8
            total = to_float(add_i(even, high_sums(isa, odd)))
            acc = _add_group(acc, total, scale_at, scales[group])
            scale_at += 32
        _store_tile(m, tile, acc, out)


@jit
def _bitmask4_int8(isa, m, digits, scales, sums, out, first, last):
    """Tiles ``first:last`` of a sparse 4-bit matrix by int8 activations."""
    for tile in range(first, last):
        evens = m.codes + load_u32(m.offsets + 4 * tile)
        odds = evens
        mask_at = m.mask + tile * (8 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x, acc = digits, no_floats()
        for group in range(m.groups):
            even, odd = all_sums(np.int32(-8) * sums[group]), no_sums()
            prefetch(scale_at + SCALES_AHEAD)
            for _ in range(_octets(m, group)):
                mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
                prefetch(mask_at + MASK_AHEAD)
                prefetch(evens + AHEAD)
                even = dot(isa, even, expand_low(isa, evens, mask_even), load_i32(x))
                odd = dot(isa, odd, expand_high(isa, odds, mask_odd), load_i32(x + 4))
                evens += popcount(mask_even)
                odds += popcount(mask_odd)
                mask_at += 16
                x += 8
            total = to_float(add_i(even, high_sums(isa, odd)))
            acc = _add_group(acc, total, scale_at, scales[group])
            scale_at += 32
        _store_tile(m, tile, acc, out)


@jit
def _four_rows_int8(isa, m, batch, digits, scratch, out, first, last):
    """Tiles ``first:last`` of a 4-bit matrix by two to four rows of int8 activations."""
    padded = 4 * m.quads
    # Rows that are not there repeat the last one; they are not stored.
    one, two, three = min(1, batch - 1), min(2, batch - 1), min(3, batch - 1)
    for tile in range(first, last):
        evens = m.codes + tile * (8 * padded)
        if not m.is_dense:
            evens = m.codes + load_u32(m.offsets + 4 * tile)
        odds = evens
        mask_at = m.mask + tile * (8 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x0, acc0, acc1, acc2, acc3 = digits, no_floats(), no_floats(), no_floats(), no_floats()
        x1, x2, x3 = x0 + one * padded, x0 + two * padded, x0 + three * padded
        for group in range(m.groups):
            even0 = all_sums(np.int32(-8) * scratch.sums[0, group])
            even1 = all_sums(np.int32(-8) * scratch.sums[one, group])
            even2 = all_sums(np.int32(-8) * scratch.sums[two, group])
            even3 = all_sums(np.int32(-8) * scratch.sums[three, group])
            odd0, odd1, odd2, odd3 = no_sums(), no_sums(), no_sums(), no_sums()
            begin = group * m.group_size
            for k in range(begin, begin + 8 * _octets(m, group), 8):
                prefetch(evens + AHEAD)
                if m.is_dense:
                    both = load_lanes(evens)
                    low, high = low_nibbles(both), high_lanes(isa, both)
                    evens += 64
                else:
                    mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
                    prefetch(mask_at + MASK_AHEAD)
                    low = expand_low(isa, evens, mask_even)
                    high = expand_high(isa, odds, mask_odd)
                    evens += popcount(mask_even)
                    odds += popcount(mask_odd)
                    mask_at += 16
                even0, odd0 = _both(isa, even0, odd0, low, high, x0 + k)
                even1, odd1 = _both(isa, even1, odd1, low, high, x1 + k)
                even2, odd2 = _both(isa, even2, odd2, low, high, x2 + k)
                even3, odd3 = _both(isa, even3, odd3, low, high, x3 + k)
            scales = scratch.scales
            acc0 = _add_halves(isa, acc0, even0, odd0, scale_at, scales[0, group])
            acc1 = _add_halves(isa, acc1, even1, odd1, scale_at, scales[one, group])
            acc2 = _add_halves(isa, acc2, even2, odd2, scale_at, scales[two, group])
            acc3 = _add_halves(isa, acc3, even3, odd3, scale_at, scales[three, group])
            scale_at += 32
        _store_tile(m, tile, acc0, out)
        _store_tile(m, tile, acc1, out + 4 * one * m.rows)
        _store_tile(m, tile, acc2, out + 4 * two * m.rows)
        _store_tile(m, tile, acc3, out + 4 * three * m.rows)


@jit
def _both(isa, even, odd, low, high, x):
    """Add the products of an octet and eight digits at ``x``."""
    return dot(isa, even, low, load_i32(x)), dot(isa, odd, high, load_i32(x + 4))


@jit
def _add_halves(isa, acc, even, odd, scale_at, scale):
    """Return ``acc`` plus the sums of a group, scaled."""
    return _add_group(acc, to_float(add_i(even, high_sums(isa, odd))), scale_at, scale)


@jit
def _total16(isa, high_even, high_odd, low_even, low_odd):
    """Return ``256 * high + low`` as floats."""
    high = to_float(add_i(high_even, high_sums(isa, high_odd)))
    low = to_float(add_i(low_even, high_sums(isa, low_odd)))
    return add_f(multiply(high, all_floats(np.float32(256))), low)


@jit
def _dense4_int16(isa, m, digits, scales, sums, out, first, last):
    """Tiles ``first:last`` of a dense 4-bit matrix by activations of two planes."""
    plane = 4 * m.quads
    for tile in range(first, last):
        at = m.codes + tile * (8 * 4 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x, acc = digits, no_floats()
        for group in range(m.groups):
            high_even, high_odd = all_sums(np.int32(-8) * sums[group]), no_sums()
            low_even, low_odd = all_sums(np.int32(-8) * sums[m.groups + group]), no_sums()
            prefetch(scale_at + SCALES_AHEAD)
            for _ in range(_octets(m, group)):
                lanes = load_lanes(at)
                prefetch(at + AHEAD)
                evens, odds = low_nibbles(lanes), high_lanes(isa, lanes)
                high_even = dot(isa, high_even, evens, load_i32(x))
                high_odd = dot(isa, high_odd, odds, load_i32(x + 4))
                low_even = dot(isa, low_even, evens, load_i32(x + plane))
                low_odd = dot(isa, low_odd, odds, load_i32(x + plane + 4))
                at += 64
                x += 8
            total = _total16(isa, high_even, high_odd, low_even, low_odd)
            acc = _add_group(acc, total, scale_at, scales[group])
            scale_at += 32
        _store_tile(m, tile, acc, out)


@jit
def _bitmask4_int16(isa, m, digits, scales, sums, out, first, last):
    """Tiles ``first:last`` of a sparse 4-bit matrix by activations of two planes."""
    plane = 4 * m.quads
    for tile in range(first, last):
        even_at = m.codes + load_u32(m.offsets + 4 * tile)
        odd_at = even_at
        mask_at = m.mask + tile * (8 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x, acc = digits, no_floats()
        for group in range(m.groups):
            high_even, high_odd = all_sums(np.int32(-8) * sums[group]), no_sums()
            low_even, low_odd = all_sums(np.int32(-8) * sums[m.groups + group]), no_sums()
            prefetch(scale_at + SCALES_AHEAD)
            for _ in range(_octets(m, group)):
                mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
                prefetch(mask_at + MASK_AHEAD)
                prefetch(even_at + AHEAD)
                evens = expand_low(isa, even_at, mask_even)
                odds = expand_high(isa, odd_at, mask_odd)
                high_even = dot(isa, high_even, evens, load_i32(x))
                high_odd = dot(isa, high_odd, odds, load_i32(x + 4))
                low_even = dot(isa, low_even, evens, load_i32(x + plane))
                low_odd = dot(isa, low_odd, odds, load_i32(x + plane + 4))
                even_at += popcount(mask_even)
                odd_at += popcount(mask_odd)
                mask_at += 16
                x += 8
            total = _total16(isa, high_even, high_odd, low_even, low_odd)
            acc = _add_group(acc, total, scale_at, scales[group])
            scale_at += 32
        _store_tile(m, tile, acc, out)


@jit
def _four_low(isa, acc, lanes, x):
    """Return ``acc`` plus four columns of low nibbles times the floats at ``x``."""
    words = as_words(lanes)
    acc = fused(low_float(isa, words, 0), all_floats(load_float(x)), acc)
    acc = fused(low_float(isa, words, 1), all_floats(load_float(x + 4)), acc)
    acc = fused(low_float(isa, words, 2), all_floats(load_float(x + 8)), acc)
    return fused(low_float(isa, words, 3), all_floats(load_float(x + 12)), acc)


@jit
def _four_high(isa, acc, lanes, x):
    """Return ``acc`` plus four columns of high nibbles times the floats at ``x``."""
    words = as_words(lanes)
    acc = fused(high_float(isa, words, 0), all_floats(load_float(x)), acc)
    acc = fused(high_float(isa, words, 1), all_floats(load_float(x + 4)), acc)
    acc = fused(high_float(isa, words, 2), all_floats(load_float(x + 8)), acc)
    return fused(high_float(isa, words, 3), all_floats(load_float(x + 12)), acc)


@jit
def _four_bit_float32(isa, m, x_padded, out, first, last):
    """Tiles ``first:last`` of a 4-bit matrix by float32 activations at address ``x_padded``."""
    for tile in range(first, last):
        even_at = m.codes + tile * (8 * 4 * m.quads)
        if not m.is_dense:
            even_at = m.codes + load_u32(m.offsets + 4 * tile)
        odd_at = even_at
        mask_at = m.mask + tile * (8 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x, acc = x_padded, no_floats()
        for group in range(m.groups):
            sum0, sum1, sum2, sum3 = no_floats(), no_floats(), no_floats(), no_floats()
            prefetch(scale_at + SCALES_AHEAD)
            for octet in range(_octets(m, group)):
                prefetch(even_at + AHEAD)
                if m.is_dense:
                    both = load_lanes(even_at)
                    evens, odds = low_nibbles(both), high_lanes(isa, both)
                    even_at += 64
                else:
                    mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
                    prefetch(mask_at + MASK_AHEAD)
                    evens = expand_low(isa, even_at, mask_even)
                    odds = expand_high(isa, odd_at, mask_odd)
                    even_at += popcount(mask_even)
                    odd_at += popcount(mask_odd)
                    mask_at += 16
                # Independent sums, so that one multiply-add need not wait for the one before.
                if octet & 1:
                    sum0 = _four_low(isa, sum0, evens, x)
                    sum1 = _four_high(isa, sum1, odds, x + 16)
                else:
                    sum2 = _four_low(isa, sum2, evens, x)
                    sum3 = _four_high(isa, sum3, odds, x + 16)
                x += 32
            total = add_f(add_f(sum0, sum1), add_f(sum2, sum3))
            acc = fused(total, load_halves(scale_at), acc)
            scale_at += 32
        _store_tile(m, tile, acc, out)


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


@jit
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
def _begin_streams(m, tile, codes, offsets, width, at):
    """Point every stream of a plane at the tile's first byte."""
    begin = codes + tile * (64 * m.quads * width // 8)
    if not m.is_dense:
        begin = codes + load_u32(offsets + 4 * tile)
    at[:] = begin


@jit
def _decode_group(isa, m, tile, quad, count, at, at_high, lanes):
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
def _dots(isa, bits, lanes, count, x, stride, rows, totals):
    """Add the products of decoded quads and up to four rows of digits to ``totals``."""
    sum0, sum1 = load_sums(totals), load_sums(totals + 64)
    sum2, sum3 = load_sums(totals + 128), load_sums(totals + 192)
    x1, x2, x3 = x + min(1, rows) * stride, x + min(2, rows) * stride, x + min(3, rows) * stride
    for i in range(count):
        cell = load_lanes(lanes + 64 * i)
        if bits == 8:
            sum0 = dot_bytes(isa, sum0, cell, load_i32(x + 4 * i))
            sum1 = dot_bytes(isa, sum1, cell, load_i32(x1 + 4 * i))
            sum2 = dot_bytes(isa, sum2, cell, load_i32(x2 + 4 * i))
            sum3 = dot_bytes(isa, sum3, cell, load_i32(x3 + 4 * i))
        else:
            sum0 = dot(isa, sum0, cell, load_i32(x + 4 * i))
            sum1 = dot(isa, sum1, cell, load_i32(x1 + 4 * i))
            sum2 = dot(isa, sum2, cell, load_i32(x2 + 4 * i))
            sum3 = dot(isa, sum3, cell, load_i32(x3 + 4 * i))
    store_sums(totals, sum0)
    store_sums(totals + 64, sum1)
    store_sums(totals + 128, sum2)
    store_sums(totals + 192, sum3)


@jit
def _dot_one(isa, bits, lanes, count, x, totals):
    """Add the products of decoded quads and one row of digits to ``totals``."""
    sum0, sum1 = load_sums(totals), no_sums()
    for i in range(0, count, 2):
        even, odd = load_lanes(lanes + 64 * i), load_lanes(lanes + 64 * i + 64)
        if bits == 8:
            sum0 = dot_bytes(isa, sum0, even, load_i32(x + 4 * i))
            sum1 = dot_bytes(isa, sum1, odd, load_i32(x + 4 * i + 4))
        else:
            sum0 = dot(isa, sum0, even, load_i32(x + 4 * i))
            sum1 = dot(isa, sum1, odd, load_i32(x + 4 * i + 4))
    store_sums(totals, add_i(sum0, sum1))


@jit
def _integer_batch(isa, m, planes, batch, digits, scratch, thread, out, first, last):
    """Tiles ``first:last`` of any matrix by ``batch`` rows of int8 or two-plane activations.

    ``digits`` is the address of those in ``scratch``, ``out`` of float32 [batch, rows].
    """
    count_rows, padded = batch * planes, 4 * m.quads
    lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
    totals_at = np.int64(scratch.totals[thread].ctypes.data)
    acc_at = np.int64(scratch.acc[thread].ctypes.data)
    at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
    offset = np.int32(-(1 << (m.bits - 1)))
    for tile in range(first, last):
        _begin_streams(m, tile, m.codes, m.offsets, 2 if m.bits == 3 else m.bits, at)
        if m.bits == 3:
            _begin_streams(m, tile, m.codes_high, m.offsets_high, 1, at_high)
        for row in range(batch):
            store_floats(acc_at + 64 * row, no_floats())
        for group in range(m.groups):
            begin = group * m.group_size // 4
            end = min(begin + m.group_size // 4, m.quads)
            for row in range(count_rows):
                start = offset * scratch.sums[row // planes, row % planes * m.groups + group]
                store_sums(totals_at + 64 * row, all_sums(start))
            for quad in range(begin, end, CHUNK):
                count = min(CHUNK, end - quad)
                _decode_group(isa, m, tile, quad, count, at, at_high, lanes)
                if count_rows == 1:
                    _dot_one(isa, m.bits, lanes, count, digits + 4 * quad, totals_at)
                else:
                    for row in range(0, count_rows, 4):
                        x = digits + row * padded + 4 * quad
                        left = min(3, count_rows - 1 - row)
                        _dots(isa, m.bits, lanes, count, x, padded, left, totals_at + 64 * row)
            scale_at = m.scales + 32 * (tile * m.groups + group)
            for row in range(batch):
                total = to_float(load_sums(totals_at + 64 * row * planes))
                if planes == 2:
                    low = to_float(load_sums(totals_at + 64 * row * planes + 64))
                    total = add_f(multiply(total, all_floats(np.float32(256))), low)
                acc = load_floats(acc_at + 64 * row)
                acc = _add_group(acc, total, scale_at, scratch.scales[row, group])
                store_floats(acc_at + 64 * row, acc)
        for row in range(batch):
            _store_tile(m, tile, load_floats(acc_at + 64 * row), out + 4 * row * m.rows)


@jit
def _float_row(lanes, count, offset, x, total):
    """Return ``total`` plus the products of decoded quads and float32 activations."""
    minus = all_floats(-offset)
    sum0, sum1 = total, no_floats()
    for i in range(count):
        words, at = as_words(load_lanes(lanes + 64 * i)), x + 16 * i
        sum0 = fused(add_f(byte_as_float(words, 0), minus), all_floats(load_float(at)), sum0)
        sum1 = fused(add_f(byte_as_float(words, 1), minus), all_floats(load_float(at + 4)), sum1)
        sum0 = fused(add_f(byte_as_float(words, 2), minus), all_floats(load_float(at + 8)), sum0)
        sum1 = fused(add_f(byte_as_float(words, 3), minus), all_floats(load_float(at + 12)), sum1)
    return add_f(sum0, sum1)


@jit
def _float_batch(isa, m, batch, x_padded, scratch, thread, out, first, last):
    """Tiles ``first:last`` of any matrix by ``batch`` rows of float32, [batch, padded K]."""
    padded = 4 * m.quads
    lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
    totals_at = np.int64(scratch.totals[thread].ctypes.data)
    acc_at = np.int64(scratch.acc[thread].ctypes.data)
    at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
    offset = np.float32(1 << (m.bits - 1))
    for tile in range(first, last):
        _begin_streams(m, tile, m.codes, m.offsets, 2 if m.bits == 3 else m.bits, at)
        if m.bits == 3:
            _begin_streams(m, tile, m.codes_high, m.offsets_high, 1, at_high)
        for row in range(batch):
            store_floats(acc_at + 64 * row, no_floats())
        for group in range(m.groups):
            begin = group * m.group_size // 4
            end = min(begin + m.group_size // 4, m.quads)
            for row in range(batch):
                store_floats(totals_at + 64 * row, no_floats())
            for quad in range(begin, end, CHUNK):
                count = min(CHUNK, end - quad)
                _decode_group(isa, m, tile, quad, count, at, at_high, lanes)
                for row in range(batch):
                    x = x_padded + 4 * (row * padded + 4 * quad)
                    total = load_floats(totals_at + 64 * row)
                    total = _float_row(lanes, count, offset, x, total)
                    store_floats(totals_at + 64 * row, total)
            scale_at = m.scales + 32 * (tile * m.groups + group)
            for row in range(batch):
                total = load_floats(totals_at + 64 * row)
                acc = fused(total, load_halves(scale_at), load_floats(acc_at + 64 * row))
                store_floats(acc_at + 64 * row, acc)
        for row in range(batch):
            _store_tile(m, tile, load_floats(acc_at + 64 * row), out + 4 * row * m.rows)


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
def _decode_tiles(isa, m, scratch, thread, out, first, last):
    """Write the rows of the tiles ``first:last`` into ``out`` [N, K]."""
    lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
    edge = scratch.acc[thread]
    edge_at, out_at = np.int64(edge.ctypes.data), np.int64(out.ctypes.data)
    at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
    offset = all_floats(np.float32(1 << (m.bits - 1)))
    for tile in range(first, last):
        _begin_streams(m, tile, m.codes, m.offsets, 2 if m.bits == 3 else m.bits, at)
        if m.bits == 3:
            _begin_streams(m, tile, m.codes_high, m.offsets_high, 1, at_high)
        rows = min(16, m.rows - 16 * tile)
        for group in range(m.groups):
            scales = load_halves(m.scales + 32 * (tile * m.groups + group))
            begin = group * m.group_size // 4
            end = min(begin + m.group_size // 4, m.quads)
            for quad in range(begin, end, CHUNK):
                count = min(CHUNK, end - quad)
                _decode_group(isa, m, tile, quad, count, at, at_high, lanes)
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


def _decode(isa, m, threads, scratch, out):
    """Write the weights into ``out``; ``scratch`` is for a batch of four."""
    tiles = (m.rows + 15) // 16
    for thread in prange(threads):
        first, last = tiles * thread // threads, tiles * (thread + 1) // threads
        _decode_tiles(isa, m, scratch, thread, out, first, last)


def _multiply_integer(isa, m, planes, x, threads, scratch, out):
    """``out[b] = weights @ x[b]`` with activations of one or two planes of int8."""
    batch, tiles = len(x), (m.rows + 15) // 16
    scales, sums = scratch.scales, scratch.sums
    x_at, out_at = np.int64(x.ctypes.data), np.int64(out.ctypes.data)
    for row in range(batch):
        row_at = x_at + 4 * row * m.columns
        _quantize(m, planes, row_at, scratch.digits[row], scales[row], sums[row])
    at = np.int64(scratch.digits.ctypes.data)
    for thread in prange(threads):
        first, last = tiles * thread // threads, tiles * (thread + 1) // threads
        if 1 < batch <= 4 and planes == 1 and m.bits == 4:
            _four_rows_int8(isa, m, batch, at, scratch, out_at, first, last)
        elif batch > 1 or m.bits != 4:
            _integer_batch(isa, m, planes, batch, at, scratch, thread, out_at, first, last)
        elif planes == 1 and m.is_dense:
            _dense4_int8(isa, m, at, scales[0], sums[0], out_at, first, last)
        elif planes == 1:
            _bitmask4_int8(isa, m, at, scales[0], sums[0], out_at, first, last)
        elif m.is_dense:
            _dense4_int16(isa, m, at, scales[0], sums[0], out_at, first, last)
        else:
            _bitmask4_int16(isa, m, at, scales[0], sums[0], out_at, first, last)


def _multiply_float(isa, m, x_padded, threads, scratch, out):
    """``out[b] = weights @ x[b]`` with float32 activations [M, padded K]."""
    batch, tiles = len(x_padded), (m.rows + 15) // 16
    at, out_at = np.int64(x_padded.ctypes.data), np.int64(out.ctypes.data)
    for thread in prange(threads):
        first, last = tiles * thread // threads, tiles * (thread + 1) // threads
        if batch == 1 and m.bits == 4:
            _four_bit_float32(isa, m, at, out_at, first, last)
        else:
            _float_batch(isa, m, batch, at, scratch, thread, out_at, first, last)


multiply_integer, multiply_integer_parallel = serial_and_parallel(_multiply_integer)
multiply_float, multiply_float_parallel = serial_and_parallel(_multiply_float)
decode, decode_parallel = serial_and_parallel(_decode)
