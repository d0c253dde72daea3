"""Products with 4-bit codes, straight from the packed bytes: one row of activations, or four.

One 64-byte register holds a cell, 16 rows by 4 columns, so a product with four activations leaves
one sum in the lane of each row.
"""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._isa import (
    dot,
    expand_high,
    expand_low,
    high_float,
    high_lanes,
    high_sums,
    low_float,
)
from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    as_words,
    fused,
    load_float,
    load_halves,
    load_i32,
    load_lanes,
    load_u32,
    load_u64,
    low_nibbles,
    multiply,
    no_floats,
    no_sums,
    popcount,
    prefetch,
    to_float,
)
from edgesparse_kernels.tiles import AHEAD, MASK_AHEAD, SCALES_AHEAD, add_group, octets, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@jit
def _dense_octet(isa, even, odd, at, x):
    """Add the products of an octet of dense codes."""
    lanes = load_lanes(at)
    prefetch(at + AHEAD)
    even = dot(isa, even, low_nibbles(lanes), load_i32(x))
    return even, dot(isa, odd, high_lanes(isa, lanes), load_i32(x + 4))


@jit
def dense4_int8(isa, m, digits, scales, sums, out, first, last):
    """Tiles ``first:last`` of a dense 4-bit matrix by int8 activations."""
    for tile in range(first, last):
        at = m.codes + tile * (8 * 4 * m.quads)
        scale_at = m.scales + tile * (32 * m.groups)
        x, acc = digits, no_floats()
        for group in range(m.groups):
            even, odd = all_sums(np.int32(-8) * sums[group]), no_sums()
            even2, odd2 = no_sums(), no_sums()
            prefetch(scale_at + SCALES_AHEAD)
            count = octets(m, group)
            for _ in range(count // 2):  # sums of their own: a dot product takes five cycles
                even, odd = _dense_octet(isa, even, odd, at, x)
                even2, odd2 = _dense_octet(isa, even2, odd2, at + 64, x + 8)
                at += 128
                x += 16
            for _ in range(count % 2):
                even, odd = _dense_octet(isa, even, odd, at, x)
                at += 64
                x += 8
            even, odd = add_i(even, even2), add_i(odd, odd2)
            acc = _add_halves(isa, acc, even, odd, scale_at, scales[group])
            scale_at += 32
        store_tile(m, tile, acc, out)


@jit
def _octet(isa, even, odd, evens, odds, mask_at, x):
    """Add the products of an octet; return the sums and where the next codes are."""
    mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
    even = dot(isa, even, expand_low(isa, evens, mask_even), load_i32(x))
    odd = dot(isa, odd, expand_high(isa, odds, mask_odd), load_i32(x + 4))
    return even, odd, evens + popcount(mask_even), odds + popcount(mask_odd)


@jit
def bitmask4_int8(isa, m, digits, scales, sums, out, first, last):
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
            count = octets(m, group)
            # Four at a time: asking for each line once, not four times, saves a twentieth.
            for _ in range(count // 4):
                prefetch(mask_at + MASK_AHEAD)
                prefetch(evens + AHEAD)
                even, odd, evens, odds = _octet(isa, even, odd, evens, odds, mask_at, x)
                even, odd, evens, odds = _octet(isa, even, odd, evens, odds, mask_at + 16, x + 8)
                prefetch(evens + AHEAD)
                even, odd, evens, odds = _octet(isa, even, odd, evens, odds, mask_at + 32, x + 16)
                even, odd, evens, odds = _octet(isa, even, odd, evens, odds, mask_at + 48, x + 24)
                mask_at += 64
                x += 32
            for _ in range(count % 4):
                even, odd, evens, odds = _octet(isa, even, odd, evens, odds, mask_at, x)
                mask_at += 16
                x += 8
            acc = _add_halves(isa, acc, even, odd, scale_at, scales[group])
            scale_at += 32
        store_tile(m, tile, acc, out)


@jit
def _both(isa, even, odd, low, high, x):
    """Add the products of an octet and eight digits at ``x``."""
    return dot(isa, even, low, load_i32(x)), dot(isa, odd, high, load_i32(x + 4))


@jit
def _add_halves(isa, acc, even, odd, scale_at, scale):
    """Return ``acc`` plus the sums of a group, scaled."""
    return add_group(acc, to_float(add_i(even, high_sums(isa, odd))), scale_at, scale)


@jit
def four_rows_int8(isa, m, batch, digits, scratch, out, first, last):
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
            for k in range(begin, begin + 8 * octets(m, group), 8):
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
        store_tile(m, tile, acc0, out)
        store_tile(m, tile, acc1, out + 4 * one * m.rows)
        store_tile(m, tile, acc2, out + 4 * two * m.rows)
        store_tile(m, tile, acc3, out + 4 * three * m.rows)


@jit
def _total16(isa, high_even, high_odd, low_even, low_odd):
    """Return ``256 * high + low`` as floats."""
    high = to_float(add_i(high_even, high_sums(isa, high_odd)))
    low = to_float(add_i(low_even, high_sums(isa, low_odd)))
    return add_f(multiply(high, all_floats(np.float32(256))), low)


@jit
def dense4_int16(isa, m, digits, scales, sums, out, first, last):
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
            for _ in range(octets(m, group)):
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
            acc = add_group(acc, total, scale_at, scales[group])
            scale_at += 32
        store_tile(m, tile, acc, out)


@jit
def bitmask4_int16(isa, m, digits, scales, sums, out, first, last):
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
            for _ in range(octets(m, group)):
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
            acc = add_group(acc, total, scale_at, scales[group])
            scale_at += 32
        store_tile(m, tile, acc, out)


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
def four_bit_float32(isa, m, x_padded, out, first, last):
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
            for octet in range(octets(m, group)):
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
        store_tile(m, tile, acc, out)
