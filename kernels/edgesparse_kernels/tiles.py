"""What the vector kernels share: a matrix as numbers, activations as digits, a tile's results.

Integer sums are exact; floats are made of them by ``total * (weight scale * activation scale)``,
rounded at each step, group after group, so every instruction set gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    float_of_bits,
    largest,
    load_float,
    load_floats,
    load_halves,
    load_i32,
    load_sums,
    magnitude_bits,
    maximum,
    multiply,
    no_sums,
    round_even,
    shift_left,
    shift_right,
    store_bytes,
    store_float,
    store_floats,
    subtract_i,
    sum_i,
    to_int,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

# Bytes ahead of use at which streamed codes, masks and scales are asked for: without, a streamed
# product reaches two thirds of the memory's speed.
AHEAD, MASK_AHEAD, SCALES_AHEAD = 8192, 2048, 512
CHUNK = 32  # quads decoded at once: 2 KiB of lanes, which stay in the first-level cache


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
    thread: lanes uint8, streams int64, totals int32 and acc float32; how many of them
    ``calls.scratch_shapes`` says.
    """

    digits: NDArray[np.int8]
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]
    lanes: NDArray[np.uint8]
    streams: NDArray[np.int64]
    totals: NDArray[np.int32]
    acc: NDArray[np.float32]


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
def quantize(m, planes, x, digits, scales, sums):
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
def store_tile(m, tile, sums, out):
    """Write the rows of a tile, those of padding left out, to the address ``out``."""
    if 16 * tile + 16 <= m.rows:
        store_floats(out + 64 * tile, sums)
        return
    rows = np.empty(16, np.float32)
    store_floats(np.int64(rows.ctypes.data), sums)
    for row in range(16 * tile, m.rows):
        store_float(out + 4 * row, rows[row % 16])


@jit
def octets(m, group):
    """Return how many pairs of quads a group has; the last one may be shorter."""
    return min(m.group_size, 4 * m.quads - group * m.group_size) // 8


@jit
def add_group(acc, total, scales, scale):
    """Return ``acc + total * (scales * scale)``, rounded at each step."""
    return add_f(acc, multiply(total, multiply(load_halves(scales), all_floats(scale))))
