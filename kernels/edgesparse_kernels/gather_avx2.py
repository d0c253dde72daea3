"""AVX2 kernels for groups of a tile with a structured mask; ``gather.py`` says what they do.

Products are added up in pairs of 16 bits, and those sums widened before they could overflow. Where
weights meet gathered activations, eight times these are taken off at once.
"""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._avx2_bytes import (
    PAIRS_AT_ONCE,
    add_products,
    four_repeated,
    look_up,
    no_pairs,
    pack_bytes,
    shuffle,
    subtract_eights,
    sum_of_eight,
    sum_pairs,
)
from edgesparse_kernels._jit import jit
from edgesparse_kernels._places import eight_repeated, high_nibbles, places_in_octet
from edgesparse_kernels._simd import (
    add_i,
    all_sums,
    and_lanes,
    load_i32,
    load_lanes,
    load_u16,
    load_u64,
    no_lanes,
    no_sums,
    popcount,
    prefetch,
    store_lanes,
    trailing_zeros,
    xor_lanes,
)
from edgesparse_kernels.tiles import AHEAD

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_STEPS = PAIRS_AT_ONCE // 2  # of nm4: each adds two products to each sum
_FIRST, _SECOND, _THIRD, _FOURTH = look_up


@jit
def _shifted(at):
    """64 bytes of two codes, 8 added to each."""
    return xor_lanes(load_lanes(at), 0x88)


@jit
def _gathered(pairs, codes, digits):
    """Add the products of ``code + 8`` and digits, less eight times the digits."""
    return subtract_eights(add_products(pairs, codes, digits), digits)


@jit
def _widened(total, first, second):
    return add_i(total, add_i(sum_pairs(first), sum_pairs(second)))


@jit
def nm4_group(isa, m, codes, index, x, steps):
    """Sums of ``steps`` times 32 columns from the digits at ``x``."""
    total = no_sums()
    for begin in range(0, steps, _STEPS):
        low, high = no_pairs(), no_pairs()
        for step in range(begin, min(begin + _STEPS, steps)):
            plane = load_lanes(index + 64 * step)
            at, column = codes + 128 * step, x + 32 * step
            prefetch(at + AHEAD)
            prefetch(at + AHEAD + 64)
            prefetch(index + 64 * step + AHEAD // 2)
            both = _shifted(at)
            digits = shuffle(eight_repeated(column), places_in_octet(plane, 0))
            low = _gathered(low, and_lanes(both, 15), digits)
            digits = shuffle(eight_repeated(column + 8), places_in_octet(plane, 1))
            high = _gathered(high, high_nibbles(both), digits)
            both = _shifted(at + 64)
            digits = shuffle(eight_repeated(column + 16), places_in_octet(plane, 2))
            low = _gathered(low, and_lanes(both, 15), digits)
            digits = shuffle(eight_repeated(column + 24), places_in_octet(plane, 3))
            high = _gathered(high, high_nibbles(both), digits)
        total = _widened(total, low, high)
    return total


@jit
def n64_group(isa, m, codes, index, x, pairs):
    """Sums of ``pairs`` times 128 columns, two windows, from the digits at ``x``."""
    total, eighths = no_sums(), m.of_64 // 8
    for pair in range(pairs):
        # At most 7 chunks: each adds two products to each of two sums.
        low, high = no_pairs(), no_pairs()
        for chunk in range(eighths):
            if chunk == _STEPS:
                total = _widened(total, low, high)
                low, high = no_pairs(), no_pairs()
            # Half a chunk is an eighth of a window; the second window begins in the middle.
            former = x + 128 * pair + 64 * (2 * chunk >= eighths)
            latter = x + 128 * pair + 64 * (2 * chunk + 1 >= eighths)
            low01, low23, plane = load_lanes(index), load_lanes(index + 64), load_lanes(index + 128)
            prefetch(codes + AHEAD)
            prefetch(codes + AHEAD + 64)
            prefetch(index + AHEAD)
            prefetch(index + AHEAD + 64)
            prefetch(index + AHEAD + 128)
            both = _shifted(codes)
            digits = _FIRST(former, and_lanes(low01, 15), plane)
            low = _gathered(low, and_lanes(both, 15), digits)
            digits = _SECOND(former, high_nibbles(low01), plane)
            high = _gathered(high, high_nibbles(both), digits)
            both = _shifted(codes + 64)
            digits = _THIRD(latter, and_lanes(low23, 15), plane)
            low = _gathered(low, and_lanes(both, 15), digits)
            digits = _FOURTH(latter, high_nibbles(low23), plane)
            high = _gathered(high, high_nibbles(both), digits)
            codes += 128
            index += 192
        total = _widened(total, low, high)
    return total


@jit
def column16_pack(isa, m, kept, x, words, to):
    """Pack the digits of kept columns, 64 a word; return how many, and eight times their sum."""
    count, total = np.int64(0), np.int64(0)
    for word in range(words):
        mask = load_u64(kept + 8 * word)
        total += pack_bytes(x + 64 * word, mask, to + count)
        count += popcount(mask)
    store_lanes(to + count, no_lanes())
    return count, np.int32(8 * total)


@jit
def column16_group(isa, codes, parity, quads, x, minus):
    """Sums of ``quads`` quads, the first in the low halves at ``codes`` if ``parity`` is 0."""
    total, quad = all_sums(-minus), np.int64(0)
    if parity and quads:
        high = high_nibbles(_shifted(codes))
        total = add_i(total, sum_pairs(add_products(no_pairs(), high, four_repeated(load_i32(x)))))
        codes += 64
        quad += 1
    while quad < quads:
        low, high = no_pairs(), no_pairs()
        for _ in range(min((quads - quad) // 2, PAIRS_AT_ONCE)):
            both = _shifted(codes)
            prefetch(codes + AHEAD)
            four = four_repeated(load_i32(x + 4 * quad))
            low = add_products(low, and_lanes(both, 15), four)
            four = four_repeated(load_i32(x + 4 * quad + 4))
            high = add_products(high, high_nibbles(both), four)
            codes += 64
            quad += 2
        total = _widened(total, low, high)
        if quad + 1 == quads:
            low = and_lanes(_shifted(codes), 15)
            four = four_repeated(load_i32(x + 4 * quad))
            total = add_i(total, sum_pairs(add_products(no_pairs(), low, four)))
            quad += 1
    return total


@jit
def block_group(isa, codes, kept, x, words):
    """Sums of ``words`` times 128 columns and how many blocks they took."""
    total, minus, count = no_sums(), np.int64(0), np.int64(0)
    for word in range(words):
        mask = load_u16(kept + 2 * word)
        while mask:
            low, high = no_pairs(), no_pairs()
            for _ in range(min(popcount(mask), PAIRS_AT_ONCE)):
                at = x + 128 * word + 8 * trailing_zeros(mask)
                both = _shifted(codes + 64 * count)
                prefetch(codes + 64 * count + AHEAD)
                low = add_products(low, and_lanes(both, 15), four_repeated(load_i32(at)))
                high = add_products(high, high_nibbles(both), four_repeated(load_i32(at + 4)))
                minus += sum_of_eight(at)
                count += 1
                mask &= mask - 1
            total = _widened(total, low, high)
    return add_i(total, all_sums(np.int32(-8 * minus))), count
