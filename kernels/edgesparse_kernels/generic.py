"""Loops for any layout, any bits, any group size and any CPU: rows decoded one at a time.

A row needs no other row of its tile: the set mask bits before it say where its codes are.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from edgesparse_kernels._jit import jit, jit_reassociate, serial_and_parallel

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

# Powers of two for the exponents of float16: value = (mantissa + 1024 * normal) * power.
_POWER = np.array([2.0 ** (max(exponent, 1) - 25) for exponent in range(32)], np.float32)
_NORMAL = np.array([0.0] + [1024.0] * 31, np.float32)


@jit
def _half(word):
    """Return the finite float16 in ``word`` as float32."""
    exponent = (np.int64(word) >> 10) & 31
    magnitude = (np.float32(np.int64(word) & 1023) + _NORMAL[exponent]) * _POWER[exponent]
    return -magnitude if np.int64(word) & 0x8000 else magnitude


@jit
def _popcount(word):
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@jit
def _row_plane(mask, codes, begin, width, shift, quads, tile, lane, out):
    """OR one plane's part of a row, lanes ``lane .. lane + 3`` of each quad, into ``out``.

    Beside codes, which have at most 8 bits, the highest bit says that the lane is kept.
    """
    streams = max(1, 8 // width)
    low_bits = np.int64((1 << width) - 1)
    before = (np.uint64(1) << np.uint64(lane)) - np.uint64(1)
    for j in range(streams):
        position = begin
        for quad in range(j, quads, streams):
            word = mask[tile * quads + quad] if mask.size else ~np.uint64(0)
            at = position + _popcount(word & before)
            for c in range(4):
                bit = np.int64((word >> np.uint64(lane + c)) & np.uint64(1))
                if width == 16:
                    code = np.int64(codes[2 * at]) | (np.int64(codes[2 * at + 1]) << 8)
                else:
                    code = (np.int64(codes[at]) >> (width * j)) & low_bits
                out[4 * quad + c] |= np.uint16((code * bit) << shift)
                if width < 16:
                    out[4 * quad + c] |= np.uint16(bit << 15)
                at += bit
            position += _popcount(word)


@jit
def _decode_row(
    geometry, mask, codes, offsets, codes_high, offsets_high, scales, zeros, table, row, words, out
):
    """Decode ``row`` into ``out`` float32 [padded K]; ``words`` uint16 [padded K] is scratch."""
    _, columns, bits, group_size, groups, quads, table_rows = geometry
    tile, lane = row // 16, 4 * (row % 16)
    words[:] = 0
    width = 2 if bits == 3 else bits
    per_tile = 64 * quads // max(1, 8 // width)
    begin = np.int64(offsets[tile]) // max(1, width // 8) if mask.size else tile * per_tile
    _row_plane(mask, codes, begin, width, 0, quads, tile, lane, words)
    if bits == 3:
        begin = np.int64(offsets_high[tile]) if mask.size else tile * (8 * quads)
        _row_plane(mask, codes_high, begin, 1, 2, quads, tile, lane, words)
    if bits == 16:
        for k in range(columns):
            out[k] = _half(words[k])
        return
    if group_size == 0:
        first = row // table_rows << bits if table_rows else 0
        for k in range(columns):
            kept = words[k] & np.uint16(0x8000)
            out[k] = _half(table[first + (words[k] & np.uint16(255))]) if kept else np.float32(0)
        return
    sign = np.int32(1 << (bits - 1))
    for group in range(groups):
        at = (tile * groups + group) * 16 + row % 16
        scale = _half(scales[at])
        zero = np.int32(zeros[at]) if zeros.size else np.int32(0)
        for k in range(group * group_size, min((group + 1) * group_size, columns)):
            code = (np.int32(words[k] & np.uint16(255)) ^ sign) - sign - zero
            out[k] = np.float32(code if words[k] & np.uint16(0x8000) else 0) * scale


def _decode_rows(
    geometry, mask, codes, offsets, codes_high, offsets_high, scales, zeros, table,
    indices, threads, out,
):  # fmt: skip
    """Decode the rows ``indices`` into ``out`` [len(indices), K]."""
    padded = geometry[5] * 4
    for thread in prange(threads):
        words = np.empty(padded, np.uint16)
        begin = thread * indices.size // threads
        for i in range(begin, (thread + 1) * indices.size // threads):
            _decode_row(
                geometry, mask, codes, offsets, codes_high, offsets_high, scales, zeros, table,
                indices[i], words, out[i],
            )  # fmt: skip


@jit_reassociate
def _dot(x, y):
    total = np.float32(0)
    for k in range(x.size):
        total += x[k] * y[k]
    return total


def _matmul(
    geometry, mask, codes, offsets, codes_high, offsets_high, scales, zeros, table, x, threads, out
):
    """``out[m, n] = sum over k of x[m, k] * weight[n, k]`` for x [M, K], out [M, N]."""
    rows, columns = geometry[0], geometry[1]
    padded = geometry[5] * 4
    for thread in prange(threads):
        words = np.empty(padded, np.uint16)
        weights = np.empty(padded, np.float32)
        for row in range(thread * rows // threads, (thread + 1) * rows // threads):
            _decode_row(
                geometry, mask, codes, offsets, codes_high, offsets_high, scales, zeros, table,
                row, words, weights,
            )  # fmt: skip
            for m in range(x.shape[0]):
                out[m, row] = _dot(x[m], weights[:columns])


decode_rows, decode_rows_parallel = serial_and_parallel(_decode_rows)
matmul, matmul_parallel = serial_and_parallel(_matmul)
