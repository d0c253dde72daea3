"""AVX-512 kernels for groups of a tile with a structured mask; ``gather.py`` says what they do."""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._avx512 import compress, dot_lanes, permute, shuffle
from edgesparse_kernels._isa import dot, high_lanes, high_sums
from edgesparse_kernels._jit import jit
from edgesparse_kernels._places import (
    eight_repeated,
    high_nibbles,
    places_in_octet,
    window_places,
)
from edgesparse_kernels._simd import (
    add_i,
    all_sums,
    and_lanes,
    eights,
    load_i32,
    load_lanes,
    load_u16,
    load_u64,
    low_nibbles,
    no_lanes,
    no_sums,
    popcount,
    prefetch,
    store_lanes,
    subtract_i,
    sum_i,
    trailing_zeros,
)
from edgesparse_kernels.tiles import AHEAD

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_FIRST, _SECOND, _THIRD, _FOURTH = window_places


@jit
def _gathered(isa, even, odd, minus, lanes, first, second):
    """Add the products of both halves of ``lanes`` with gathered activations."""
    even = dot_lanes(even, low_nibbles(lanes), first)
    odd = dot_lanes(odd, high_lanes(isa, lanes), second)
    minus = dot_lanes(dot_lanes(minus, eights(), first), eights(), second)
    return even, odd, minus


@jit
def nm4_group(isa, m, codes, index, x, steps):
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
def n64_group(isa, m, codes, index, x, pairs):
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
def column16_pack(isa, m, kept, x, words, to):
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
def column16_group(isa, codes, parity, quads, x, minus):
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
def block_group(isa, codes, kept, x, words):
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
