"""Products of any bits with any number of rows: each group of a tile is decoded once for all."""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._avx2 import no_pairs1, no_pairs4
from edgesparse_kernels._isa import dot, dot_bytes
from edgesparse_kernels._jit import by_set, jit
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    as_words,
    byte_as_float,
    fused,
    load_float,
    load_floats,
    load_halves,
    load_i32,
    load_lanes,
    load_sums,
    multiply,
    no_floats,
    no_sums,
    store_floats,
    store_sums,
    to_float,
)
from edgesparse_kernels.groups import begin_streams, decode_group
from edgesparse_kernels.pairs import dots_in_pairs
from edgesparse_kernels.tiles import CHUNK, add_group, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@jit
def _dots_wide(isa, bits, lanes, count, x, stride, rows, totals):
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
def _dot_one_wide(isa, bits, lanes, count, x, totals):
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


def _dots_general(isa, bits, lanes, count, x, stride, rows, totals):
    _dots_wide(isa, bits, lanes, count, x, stride, rows, totals)


def _dots_avx2(isa, bits, lanes, count, x, stride, rows, totals):
    if bits == 8:  # products with lanes of 8 bits do not fit in 16
        _dots_wide(isa, bits, lanes, count, x, stride, rows, totals)
    else:
        dots_in_pairs(no_pairs4(), lanes, count, x, stride, rows, totals)


def _dot_one_general(isa, bits, lanes, count, x, totals):
    _dot_one_wide(isa, bits, lanes, count, x, totals)


def _dot_one_avx2(isa, bits, lanes, count, x, totals):
    if bits == 8:
        _dot_one_wide(isa, bits, lanes, count, x, totals)
    else:
        dots_in_pairs(no_pairs1(), lanes, count, x, 0, 0, totals)


_dots = by_set(_dots_general, avx2=_dots_avx2)
_dot_one = by_set(_dot_one_general, avx2=_dot_one_avx2)


@jit
def integer_batch(isa, m, planes, batch, digits, scratch, thread, out, first, last):
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
        begin_streams(m, tile, at, at_high)
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
                decode_group(isa, m, tile, quad, count, at, at_high, lanes)
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
                acc = add_group(acc, total, scale_at, scratch.scales[row, group])
                store_floats(acc_at + 64 * row, acc)
        for row in range(batch):
            store_tile(m, tile, load_floats(acc_at + 64 * row), out + 4 * row * m.rows)


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
def float_batch(isa, m, batch, x_padded, scratch, thread, out, first, last):
    """Tiles ``first:last`` of any matrix by ``batch`` rows of float32, [batch, padded K]."""
    padded = 4 * m.quads
    lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
    totals_at = np.int64(scratch.totals[thread].ctypes.data)
    acc_at = np.int64(scratch.acc[thread].ctypes.data)
    at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
    offset = np.float32(1 << (m.bits - 1))
    for tile in range(first, last):
        begin_streams(m, tile, at, at_high)
        for row in range(batch):
            store_floats(acc_at + 64 * row, no_floats())
        for group in range(m.groups):
            begin = group * m.group_size // 4
            end = min(begin + m.group_size // 4, m.quads)
            for row in range(batch):
                store_floats(totals_at + 64 * row, no_floats())
            for quad in range(begin, end, CHUNK):
                count = min(CHUNK, end - quad)
                decode_group(isa, m, tile, quad, count, at, at_high, lanes)
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
            store_tile(m, tile, load_floats(acc_at + 64 * row), out + 4 * row * m.rows)
