"""Products with 4-bit codes on AVX2: one loop for up to four rows of digits, dense or by mask.

A row of digits is a row of int8 activations, or one of the two planes of a row of 16-bit ones.
"""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._avx2 import (
    add_quad,
    load_totals,
    no_pairs1,
    no_pairs2,
    no_pairs4,
    no_totals,
    store_totals,
    widen,
)
from edgesparse_kernels._isa import expand_high, expand_low
from edgesparse_kernels._jit import inlined, jit
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    and_lanes,
    bits_of,
    load_float,
    load_floats,
    load_i32,
    load_lanes,
    load_sums,
    load_u32,
    load_u64,
    multiply,
    no_floats,
    popcount,
    prefetch,
    store_floats,
    to_float,
    xor_lanes,
)
from edgesparse_kernels.tiles import AHEAD, MASK_AHEAD, SCALES_AHEAD, add_group, octets, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@inlined
def _dense_octet(pairs, at, x, step1, step2, step3):
    """Return ``pairs`` plus the products of the octet at ``at``."""
    lanes = xor_lanes(load_lanes(at), 0x88)  # both nibbles become code + 8
    prefetch(at + AHEAD)
    pairs = add_quad(pairs, and_lanes(lanes, 15), x, step1, step2, step3)
    return add_quad(pairs, bits_of(lanes, 4, 15), x + 4, step1, step2, step3)


@inlined
def _dense_group(none, count, at, x, step1, step2, step3):
    """Return the totals of a group's ``count`` octets."""
    totals = no_totals(none)
    for _ in range(count // 4):
        pairs = _dense_octet(none, at, x, step1, step2, step3)
        pairs = _dense_octet(pairs, at + 64, x + 8, step1, step2, step3)
        pairs = _dense_octet(pairs, at + 128, x + 16, step1, step2, step3)
        pairs = _dense_octet(pairs, at + 192, x + 24, step1, step2, step3)
        totals = widen(totals, pairs)
        at += 256
        x += 32
    for _ in range(count % 4):
        totals = widen(totals, _dense_octet(none, at, x, step1, step2, step3))
        at += 64
        x += 8
    return totals


@inlined
def _masked_octet(isa, pairs, evens, odds, mask_at, x, step1, step2, step3):
    """Return ``pairs`` plus the products of an octet, and where the next codes are."""
    mask_even, mask_odd = load_u64(mask_at), load_u64(mask_at + 8)
    prefetch(evens + AHEAD)
    pairs = add_quad(pairs, expand_low(isa, evens, mask_even), x, step1, step2, step3)
    pairs = add_quad(pairs, expand_high(isa, odds, mask_odd), x + 4, step1, step2, step3)
    return pairs, evens + popcount(mask_even), odds + popcount(mask_odd)


@inlined
def _masked_group(isa, none, count, evens, odds, mask_at, x, step1, step2, step3):
    """Return the totals of a group's ``count`` octets, and where the next codes are."""
    totals = no_totals(none)
    for begin in range(0, count, 4):
        pairs = none
        prefetch(mask_at + MASK_AHEAD)
        for _ in range(begin, min(begin + 4, count)):
            pairs, evens, odds = _masked_octet(
                isa, pairs, evens, odds, mask_at, x, step1, step2, step3
            )
            mask_at += 16
            x += 8
        totals = widen(totals, pairs)
    return totals, evens, odds


@jit
def _tiles(isa, none, m, planes, batch, digits, scratch, thread, out, first, last):
    """Tiles ``first:last`` by as many rows of digits as the zeros ``none`` are for."""
    padded, rows = 4 * m.quads, planes * batch
    # Rows that are not there repeat the last one; they are not stored.
    step1, step2 = min(1, rows - 1) * padded, min(2, rows - 1) * padded
    step3 = min(3, rows - 1) * padded
    totals_at = np.int64(scratch.totals[thread].ctypes.data)
    acc_at = np.int64(scratch.acc[thread].ctypes.data)
    # Addresses: arrays given to a function are counted, which costs more than a group's sums.
    scales_at, scales_step = np.int64(scratch.scales.ctypes.data), 4 * scratch.scales.shape[1]
    sums_at, sums_step = np.int64(scratch.sums.ctypes.data), 4 * scratch.sums.shape[1]
    for tile in range(first, last):
        evens = m.codes + tile * (8 * padded)
        if not m.is_dense:
            evens = m.codes + load_u32(m.offsets + 4 * tile)
        odds = evens
        mask_at = m.mask + tile * (8 * m.quads)
        for row in range(batch):
            store_floats(acc_at + 64 * row, no_floats())
        for group in range(m.groups):
            x, count = digits + group * m.group_size, octets(m, group)
            scale_at = m.scales + 32 * (tile * m.groups + group)
            prefetch(scale_at + SCALES_AHEAD)
            if m.is_dense:
                totals = _dense_group(none, count, evens, x, step1, step2, step3)
                evens += 64 * count
            else:
                totals, evens, odds = _masked_group(
                    isa, none, count, evens, odds, mask_at, x, step1, step2, step3
                )
                mask_at += 16 * count
            store_totals(totals_at, totals)
            for row in range(batch):
                sum_at = sums_at + row * sums_step + 4 * group
                total = _total(totals_at + 64 * planes * row, planes, sum_at, 4 * m.groups)
                acc = load_floats(acc_at + 64 * row)
                scale = load_float(scales_at + row * scales_step + 4 * group)
                acc = add_group(acc, total, scale_at, scale)
                store_floats(acc_at + 64 * row, acc)
        for row in range(batch):
            store_tile(m, tile, load_floats(acc_at + 64 * row), out + 4 * row * m.rows)


@jit
def _total(at, planes, sum_at, plane):
    """Return a group's totals of one row as floats: ``256 * high + low`` of two planes.

    Totals are at ``at``, the sum of digits at ``sum_at`` and ``plane`` bytes on that of the second.
    """
    total = to_float(add_i(load_sums(at), all_sums(np.int32(-8) * load_i32(sum_at))))
    if planes == 2:
        start = all_sums(np.int32(-8) * load_i32(sum_at + plane))
        low = to_float(add_i(load_sums(at + 64), start))
        total = add_f(multiply(total, all_floats(np.float32(256))), low)
    return total


@jit
def few_rows(isa, m, planes, batch, digits, scratch, thread, out, first, last):
    """Tiles ``first:last`` of a 4-bit matrix by up to four rows of digits at address ``digits``."""
    if planes * batch == 1:
        _tiles(isa, no_pairs1(), m, planes, batch, digits, scratch, thread, out, first, last)
    elif planes * batch == 2:
        _tiles(isa, no_pairs2(), m, planes, batch, digits, scratch, thread, out, first, last)
    else:
        _tiles(isa, no_pairs4(), m, planes, batch, digits, scratch, thread, out, first, last)


@jit
def dots_in_pairs(none, lanes, count, x, stride, last_row, totals_at):
    """Add the products of ``count`` decoded quads and the rows of digits at ``x`` to totals.

    Lanes are below 16; there are as many rows as the zeros ``none`` are for, and those after
    ``last_row`` repeat it.
    """
    step1, step2 = min(1, last_row) * stride, min(2, last_row) * stride
    step3 = min(3, last_row) * stride
    totals = load_totals(none, totals_at)
    for _ in range(count // 8):
        pairs = none
        for i in range(8):
            pairs = add_quad(pairs, load_lanes(lanes + 64 * i), x + 4 * i, step1, step2, step3)
        totals = widen(totals, pairs)
        lanes += 512
        x += 32
    for i in range(count % 8):
        pairs = add_quad(none, load_lanes(lanes + 64 * i), x + 4 * i, step1, step2, step3)
        totals = widen(totals, pairs)
    store_totals(totals_at, totals)
