"""Products with five or more rows of digits on matrix tiles, any bits.

A group of a tile of weights is decoded once and multiplied with all rows; its sums are scaled and
added while they are in the first-level cache. What one step stores the next one takes by other
means, tile registers from vector registers or the other way round, and has to wait for the stores.
So the steps of three groups take turns: one is decoded, the one before multiplied, the one before
that scaled. Digits are laid out beforehand, the operand of each sixteen rows in one piece: as rows
of a matrix they lie a power of two apart, and take each other's places in the cache.
"""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._amx import (
    ACCUMULATORS,
    ROWS,
    add_products,
    begin_tiles,
    clear_sums,
    end_tiles,
    load_cells,
    load_digits,
    load_sums,
    store_sums,
)
from edgesparse_kernels._jit import by_isa, jit, jit_into
from edgesparse_kernels._simd import (
    add_f,
    add_i,
    all_floats,
    all_sums,
    load_float,
    load_floats,
    load_halves,
    load_i32,
    load_lanes,
    multiply,
    no_floats,
    store_floats,
    store_i32,
    store_lanes,
    to_float,
)
from edgesparse_kernels._simd import load_sums as load_row
from edgesparse_kernels.groups import begin_streams, decode_group
from edgesparse_kernels.tiles import CHUNK, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_FEWEST = 5  # rows; up to four the sums stay in vector registers


@jit
def takes(isa, m, rows):
    """Whether ``rows`` rows of digits are multiplied on matrix tiles where there are some."""
    return rows >= _FEWEST and m.group_size % 32 == 0


@jit
def _takes_none(isa, m, rows):
    return False


takes_tiles = by_isa(lambda isa: takes if isa.has_tiles else _takes_none)


@jit
def cells_of(m):
    """Return how many cells an operand takes: a group is a whole number of operands."""
    return 16 if m.group_size % 64 == 0 else 8


@jit
def in_blocks(isa, m, planes, batch, scratch, blocks):
    """Write digits as operands: int8 [rows / 16, padded K / width, 16, width] at ``blocks``.

    Sums of digits become what a group's sums start from. Rows after the last are left as they are;
    their sums are read by nobody.
    """
    width, padded = 4 * cells_of(m), 4 * m.quads
    digits = np.int64(scratch.digits.ctypes.data)
    for row in range(planes * batch):
        to = blocks + row // ROWS * ROWS * padded + row % ROWS * width
        for begin in range(0, padded, width):
            at = digits + row * padded + begin
            if width == 64:
                store_lanes(to + ROWS * begin, load_lanes(at))
            else:
                for k in range(0, width, 4):
                    store_i32(to + ROWS * begin + k, load_i32(at + k))
    scratch.sums[:] *= np.int32(-(1 << (m.bits - 1)))


@jit_into
def _multiply_some(isa, cells, steps, lanes, x, block, count, sums, is_first):
    """Add the products of decoded cells and up to four blocks of sixteen rows to ``sums``.

    ``x`` is where the operands of the first block begin, those of the next are ``block`` bytes on;
    sums are int32 [16 count, 16].
    """
    width = 4 * cells
    if is_first:
        clear_sums(isa, 0)
        clear_sums(isa, 1)
        clear_sums(isa, 2)
        clear_sums(isa, 3)
    else:
        load_sums(isa, 0, sums)
        load_sums(isa, 1, sums + min(1, count - 1) * 1024)
        load_sums(isa, 2, sums + min(2, count - 1) * 1024)
        load_sums(isa, 3, sums + min(3, count - 1) * 1024)
    for step in range(steps):
        load_cells(isa, lanes + 64 * cells * step)
        at = x + ROWS * width * step
        load_digits(isa, at, width)
        add_products(isa, 0)
        if count > 1:
            load_digits(isa, at + block, width)
            add_products(isa, 1)
        if count > 2:
            load_digits(isa, at + 2 * block, width)
            add_products(isa, 2)
        if count > 3:
            load_digits(isa, at + 3 * block, width)
            add_products(isa, 3)
    store_sums(isa, 0, sums)
    if count > 1:
        store_sums(isa, 1, sums + 1024)
    if count > 2:
        store_sums(isa, 2, sums + 2048)
    if count > 3:
        store_sums(isa, 3, sums + 3072)


@jit_into
def _multiply(isa, cells, steps, lanes, x, block, rows, sums, is_first):
    """Add the products of decoded cells and all rows to ``sums``."""
    for row in range(0, rows, ROWS * ACCUMULATORS):
        count = min(ACCUMULATORS, (rows - row + ROWS - 1) // ROWS)
        at, to = x + row // ROWS * block, sums + 64 * row
        _multiply_some(isa, cells, steps, lanes, at, block, count, to, is_first)


@jit_into
def _add_group(m, planes, batch, tile, group, scratch, sums, acc):
    """Add the sums of a group of all rows, scaled, to ``acc`` float32 [batch, 16]."""
    scales = load_halves(m.scales + 32 * (tile * m.groups + group))
    start = np.int64(scratch.sums.ctypes.data) + 4 * group
    scale = np.int64(scratch.scales.ctypes.data) + 4 * group
    for _ in range(batch):
        total = to_float(add_i(load_row(sums), all_sums(load_i32(start))))
        if planes == 2:
            second = all_sums(load_i32(start + 4 * m.groups))
            low = to_float(add_i(load_row(sums + 64), second))
            total = add_f(multiply(total, all_floats(np.float32(256))), low)
        both = multiply(scales, all_floats(load_float(scale)))
        store_floats(acc, add_f(load_floats(acc), multiply(total, both)))
        acc += 64
        sums += 64 * planes
        start += 4 * planes * m.groups
        scale += 4 * m.groups


@jit
def _stop(m, group, quad):
    """Return where what is decoded from ``quad`` on ends: with the group, if not before."""
    return min(quad + CHUNK, (group + 1) * (m.group_size // 4), m.quads)


@jit
def on_tiles(isa, m, planes, batch, blocks, scratch, thread, out, first, last):
    """Tiles ``first:last`` of any matrix by ``batch`` rows of int8 or two-plane activations.

    ``blocks`` is the address of digits as ``in_blocks`` writes them, ``out`` that of float32
    [batch, rows].
    """
    rows, cells, size = batch * planes, cells_of(m), m.group_size // 4
    block, step = ROWS * 4 * m.quads, 64 * ((rows + ROWS - 1) // ROWS * ROWS)
    lanes = (np.int64(scratch.lanes[thread].ctypes.data) + 63) // 64 * 64
    sums = np.int64(scratch.totals[thread].ctypes.data)
    acc = np.int64(scratch.acc[thread].ctypes.data)
    at, at_high = scratch.streams[thread, 0], scratch.streams[thread, 1]
    before = begin_tiles(isa, cells)
    for tile in range(first, last):
        begin_streams(m, tile, at, at_high)
        for row in range(batch):
            store_floats(acc + 64 * row, no_floats())
        group, quad, stop, quads = 0, 0, _stop(m, 0, 0), min(m.groups * size, m.quads)
        here, there = lanes, lanes + 64 * CHUNK
        decode_group(isa, m, tile, 0, stop, at, at_high, here)
        while quad < quads:
            following = group + (stop == (group + 1) * size)
            if stop < quads:
                count = _stop(m, following, stop) - stop
                decode_group(isa, m, tile, stop, count, at, at_high, there)
            is_first, to = quad == group * size, sums + group % 2 * step
            x = blocks + ROWS * 4 * quad
            _multiply(isa, cells, (stop - quad) // cells, here, x, block, rows, to, is_first)
            if is_first and group:
                of = sums + (group - 1) % 2 * step
                _add_group(m, planes, batch, tile, group - 1, scratch, of, acc)
            group, quad, stop = following, stop, _stop(m, following, stop)
            here, there = there, here
        of = sums + (m.groups - 1) % 2 * step
        _add_group(m, planes, batch, tile, m.groups - 1, scratch, of, acc)
        for row in range(batch):
            store_tile(m, tile, load_floats(acc + 64 * row), out + 4 * row * m.rows)
    end_tiles(isa, before)


@jit
def _no_blocks(isa, m, planes, batch, scratch, blocks):
    """Without tiles: ``takes_tiles`` sends nothing here."""


@jit
def _no_batch(isa, m, planes, batch, blocks, scratch, thread, out, first, last):
    """Likewise."""


arrange = by_isa(lambda isa: in_blocks if isa.has_tiles else _no_blocks)
tile_batch = by_isa(lambda isa: on_tiles if isa.has_tiles else _no_batch)
