"""Products with codes that have zeros or stand in tables, and their decoding.

Floats come from ``chunks``. Integer sums are those of ``code - zero``: lanes that are not kept get
the zero of their row, and every sum begins at minus the row's zero times the sum of the digits.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from edgesparse_kernels._isa import dot_bytes
from edgesparse_kernels._jit import jit, serial_and_parallel
from edgesparse_kernels._simd import (
    add_f,
    all_floats,
    fused,
    load_float,
    load_floats,
    load_i32,
    load_lanes,
    load_sums,
    multiply,
    no_floats,
    store_floats,
    store_sums,
    to_float,
)
from edgesparse_kernels.chunks import (
    begin_tile,
    decode_chunk,
    fill,
    lanes_of_zeros,
    start_of_zeros,
)
from edgesparse_kernels.groups import begin_streams, decode_group
from edgesparse_kernels.tiles import CHUNK, add_group, quantize, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


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
            begin_tile(m, numbers, tile, at, at_high, begins)
            for row in range(batch):
                store_floats(acc + 64 * row, no_floats())
            for group in range(m.groups):
                begin = group * m.group_size // 4
                end = min(begin + m.group_size // 4, m.quads)
                for quad in range(begin, end, CHUNK):
                    count = min(CHUNK, end - quad)
                    decode_chunk(
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
            begin_tile(m, numbers, tile, at, at_high, begins)
            rows = min(16, m.rows - 16 * tile)
            for group in range(m.groups):
                begin = group * m.group_size // 4
                end = min(begin + m.group_size // 4, m.quads)
                for quad in range(begin, end, CHUNK):
                    count = min(CHUNK, end - quad)
                    decode_chunk(
                        isa, m, numbers, tile, group, quad, count, at, at_high, lanes, begins_at,
                        weights_at,
                    )  # fmt: skip
                    used = min(4 * count, m.columns - 4 * quad)
                    for row in range(rows):
                        for k in range(used):
                            out[16 * tile + row, 4 * quad + k] = weights[16 * k + row]


@jit
def _dots(isa, lanes, count, digits, total):
    """Return ``total`` plus the products of decoded quads and the digits at an address."""
    for i in range(count):
        total = dot_bytes(isa, total, load_lanes(lanes + 64 * i), load_i32(digits + 4 * i))
    return total


@jit
def _add_integers(m, planes, totals, scale_at, scale, acc):
    """Return ``acc`` plus a group's totals of one row; rounded as every implementation does."""
    total = to_float(load_sums(totals))
    if planes == 2:
        low = to_float(load_sums(totals + 64))
        total = add_f(multiply(total, all_floats(np.float32(256))), low)
    return add_group(acc, total, scale_at, scale)


def _multiply_integer(isa, m, zeros, planes, x, threads, scratch, out):
    """``out[b] = weights @ x[b]`` for codes with zeros and one or two planes of int8."""
    batch, tiles, padded = len(x), (m.rows + 15) // 16, 4 * m.quads
    x_at, out_at = np.int64(x.ctypes.data), np.int64(out.ctypes.data)
    for row in range(batch):
        quantize(
            m, planes, x_at + 4 * row * m.columns, scratch.digits[row], scratch.scales[row],
            scratch.sums[row],
        )  # fmt: skip
    digits, sign = np.int64(scratch.digits.ctypes.data), 1 << (m.bits - 1)
    for thread in prange(threads):
        lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
        totals = np.int64(scratch.totals[thread].ctypes.data)
        acc = np.int64(scratch.acc[thread].ctypes.data)
        at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
        for tile in range(tiles * thread // threads, tiles * (thread + 1) // threads):
            begin_streams(m, tile, at, at_high)
            for row in range(batch):
                store_floats(acc + 64 * row, no_floats())
            for group in range(m.groups):
                place = tile * m.groups + group
                zero_at = zeros + 16 * place
                for row in range(batch * planes):
                    digit_sum = scratch.sums[row // planes, row % planes * m.groups + group]
                    store_sums(totals + 64 * row, start_of_zeros(zero_at, sign, digit_sum))
                begin = group * m.group_size // 4
                end = min(begin + m.group_size // 4, m.quads)
                for quad in range(begin, end, CHUNK):
                    count = min(CHUNK, end - quad)
                    decode_group(isa, m, tile, quad, count, at, at_high, lanes)
                    if not m.is_dense:
                        fill(m, tile, quad, count, lanes, lanes_of_zeros(zero_at, sign))
                    for row in range(batch * planes):
                        each = digits + row * padded + 4 * quad
                        total = _dots(isa, lanes, count, each, load_sums(totals + 64 * row))
                        store_sums(totals + 64 * row, total)
                for row in range(batch):
                    added = _add_integers(
                        m, planes, totals + 64 * planes * row, m.scales + 32 * place,
                        scratch.scales[row, group], load_floats(acc + 64 * row),
                    )  # fmt: skip
                    store_floats(acc + 64 * row, added)
            for row in range(batch):
                store_tile(m, tile, load_floats(acc + 64 * row), out_at + 4 * row * m.rows)


multiply_floats, multiply_floats_parallel = serial_and_parallel(_multiply)
multiply_integer, multiply_integer_parallel = serial_and_parallel(_multiply_integer)
decode, decode_parallel = serial_and_parallel(_decode)
