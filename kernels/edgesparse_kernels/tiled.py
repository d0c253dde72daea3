"""The vector kernels to call: products and decoding, on one thread or several."""

from __future__ import annotations

import numpy as np
from numba import prange

from edgesparse_kernels._jit import by_set, jit, serial_and_parallel
from edgesparse_kernels.amx_batch import arrange, takes_tiles, tile_batch
from edgesparse_kernels.batches import float_batch, integer_batch
from edgesparse_kernels.calls import opened
from edgesparse_kernels.four_bit import (
    bitmask4_int8,
    bitmask4_int16,
    dense4_int8,
    dense4_int16,
    four_bit_float32,
    four_rows_int8,
)
from edgesparse_kernels.groups import decode_tiles
from edgesparse_kernels.pairs import few_rows
from edgesparse_kernels.tiles import quantize

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


def _one_row(isa, m, planes, at, scratch, thread, out, first, last):
    scales, sums = scratch.scales[0], scratch.sums[0]
    if m.bits != 4:
        integer_batch(isa, m, planes, 1, at, scratch, thread, out, first, last)
    elif planes == 1 and m.is_dense:
        dense4_int8(isa, m, at, scales, sums, out, first, last)
    elif planes == 1:
        bitmask4_int8(isa, m, at, scales, sums, out, first, last)
    elif m.is_dense:
        dense4_int16(isa, m, at, scales, sums, out, first, last)
    else:
        bitmask4_int16(isa, m, at, scales, sums, out, first, last)


def _one_row_avx2(isa, m, planes, at, scratch, thread, out, first, last):
    if m.bits == 4:
        few_rows(isa, m, planes, 1, at, scratch, thread, out, first, last)
    else:
        integer_batch(isa, m, planes, 1, at, scratch, thread, out, first, last)


# Tiles ``first:last`` by one row of digits at address ``at``, results at address ``out``.
one_row = by_set(_one_row, avx2=_one_row_avx2)


def _rows(isa, m, planes, batch, at, scratch, thread, out, first, last):
    if 1 < batch <= 4 and planes == 1 and m.bits == 4:
        four_rows_int8(isa, m, batch, at, scratch, out, first, last)
    elif batch > 1:
        integer_batch(isa, m, planes, batch, at, scratch, thread, out, first, last)
    else:
        one_row(isa, m, planes, at, scratch, thread, out, first, last)


def _rows_avx2(isa, m, planes, batch, at, scratch, thread, out, first, last):
    if m.bits == 4 and planes * batch <= 4:
        few_rows(isa, m, planes, batch, at, scratch, thread, out, first, last)
    else:
        integer_batch(isa, m, planes, batch, at, scratch, thread, out, first, last)


# Likewise by ``batch`` rows of activations.
rows = by_set(_rows, avx2=_rows_avx2)


@jit
def _quantized(isa, numbers, batch, x):
    """Write the digits of ``batch`` rows at the address ``x``; return how many threads share."""
    m, planes, threads, scratch, blocks = opened(numbers)
    for row in range(batch):
        row_at, digits = x + 4 * row * m.columns, scratch.digits[row]
        quantize(m, planes, row_at, digits, scratch.scales[row], scratch.sums[row])
    if takes_tiles(isa, m, planes * batch):
        arrange(isa, m, planes, batch, scratch, blocks)
    return threads


@jit
def _share(isa, numbers, batch, thread, out):
    """Multiply the tiles of one thread."""
    m, planes, threads, scratch, blocks = opened(numbers)
    tiles = (m.rows + 15) // 16
    first, last = tiles * thread // threads, tiles * (thread + 1) // threads
    if takes_tiles(isa, m, planes * batch):
        tile_batch(isa, m, planes, batch, blocks, scratch, thread, out, first, last)
    else:
        at = np.int64(scratch.digits.ctypes.data)
        rows(isa, m, planes, batch, at, scratch, thread, out, first, last)


def _multiply_integer(isa, numbers, x, out):
    """``out[b] = weights @ x[b]`` for what ``calls.numbers_of`` wrote, by int8 or two planes."""
    batch, out_at = len(x), np.int64(out.ctypes.data)
    for thread in prange(_quantized(isa, numbers, batch, np.int64(x.ctypes.data))):
        _share(isa, numbers, batch, thread, out_at)


def _multiply_float(isa, m, x_padded, threads, scratch, out):
    """``out[b] = weights @ x[b]`` with float32 activations [M, padded K]."""
    batch, tiles = len(x_padded), (m.rows + 15) // 16
    at, out_at = np.int64(x_padded.ctypes.data), np.int64(out.ctypes.data)
    for thread in prange(threads):
        first, last = tiles * thread // threads, tiles * (thread + 1) // threads
        if batch == 1 and m.bits == 4:
            four_bit_float32(isa, m, at, out_at, first, last)
        else:
            float_batch(isa, m, batch, at, scratch, thread, out_at, first, last)


def _decode(isa, m, threads, scratch, out):
    """Write the weights into ``out``; ``scratch`` is for a batch of four."""
    tiles = (m.rows + 15) // 16
    for thread in prange(threads):
        first, last = tiles * thread // threads, tiles * (thread + 1) // threads
        decode_tiles(isa, m, scratch, thread, out, first, last)


multiply_integer, multiply_integer_parallel = serial_and_parallel(_multiply_integer)
multiply_float, multiply_float_parallel = serial_and_parallel(_multiply_float)
decode, decode_parallel = serial_and_parallel(_decode)
