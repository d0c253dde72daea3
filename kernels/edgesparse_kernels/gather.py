"""Structured masks, matrix-vector with int8 or 16-bit activations, where a processor has gathers.

nm4 and n64 gather the activations that the kept weights meet, so nothing is expanded; column16
packs the activations of a tile's columns once and goes on as dense; block16x8 visits kept blocks.
Weights enter as ``code + 8``; what that adds is taken off by a sum of the same activations. How a
group of a tile is done is up to the instruction set: ``gather_avx512.py``, ``gather_avx2.py``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numba import carray, prange
from numpy.typing import NDArray

from edgesparse_kernels import gather_avx2, gather_avx512
from edgesparse_kernels._jit import by_isa, jit, jit_into, serial_and_parallel
from edgesparse_kernels._simd import (
    add_f,
    all_floats,
    as_pointer,
    load_i32,
    load_u32,
    multiply,
    no_floats,
    prefetch,
    store_i32,
    to_float,
)
from edgesparse_kernels.tiles import SCALES_AHEAD, add_group, quantize, store_tile

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

NM4, N64, COLUMN16, BLOCK16X8 = range(4)

GROUPS: dict[str, ModuleType] = {"avx512": gather_avx512, "avx2": gather_avx2}
"""The kernels by instruction set, all of the same names; any other set has none."""


class GatherOperand(NamedTuple):
    """A structured matrix as numbers: sizes, and the addresses of its buffers."""

    layout: int
    rows: int
    columns: int
    group_size: int
    groups: int
    quads: int
    of_64: int
    places: int
    kept: int
    codes: int
    offsets: int
    scales: int


def _group(name: str) -> Any:
    return by_isa(lambda isa: getattr(GROUPS[isa.isa], name))


_nm4_group, _n64_group = _group("nm4_group"), _group("n64_group")
_column16_pack, _column16_group = _group("column16_pack"), _group("column16_group")
_block_group = _group("block_group")


@jit
def _column16_tile(isa, m, tile, planes, digits, scales, room):
    """Return the products of a tile of whole columns.

    All groups are packed before any is multiplied: a load of what was just stored, but not by one
    store, waits until the stores are done.
    """
    code_at = m.codes + load_u32(m.offsets + 4 * tile)
    size = 4 * m.quads + 4 * m.groups + 64  # of one plane's packed digits
    counts, minus = room + planes * size, room + planes * size + 4 * m.groups
    for plane in range(planes):
        to = room + plane * size
        for group in range(m.groups):
            begin = group * m.group_size
            words = min(m.group_size, 4 * m.quads - begin) // 64
            kept = m.kept + tile * (m.quads // 2) + begin // 8
            x = digits + plane * 4 * m.quads + begin
            count, eight_times = _column16_pack(isa, m, kept, x, words, to)
            quads = (count + 3) // 4
            store_i32(counts + 4 * group, np.int32(quads))
            store_i32(minus + 4 * (plane * m.groups + group), eight_times)
            to += 4 * quads
    acc, done = no_floats(), np.int64(0)
    for group in range(m.groups):
        scale_at = m.scales + 32 * (tile * m.groups + group)
        prefetch(scale_at + SCALES_AHEAD)
        quads = np.int64(load_i32(counts + 4 * group))
        at, parity, x = code_at + 64 * (done // 2), done % 2, room + 4 * done
        taken = load_i32(minus + 4 * group)
        total = to_float(_column16_group(isa, at, parity, quads, x, taken))
        if planes == 2:
            taken = load_i32(minus + 4 * (m.groups + group))
            low = to_float(_column16_group(isa, at, parity, quads, x + size, taken))
            total = add_f(multiply(total, all_floats(np.float32(256))), low)
        done += quads
        acc = add_group(acc, total, scale_at, scales[group])
    return acc


@jit_into
def _tile_group(isa, m, tile, group, code_at, blocks_done, x):
    """Return the sums of one plane of digits over a group of a tile, and the blocks it took."""
    begin = group * m.group_size
    length = min(m.group_size, 4 * m.quads - begin)
    if m.layout == NM4:
        index = m.places + tile * (8 * m.quads) + 2 * begin
        return _nm4_group(isa, m, code_at + 4 * begin, index, x + begin, length // 32), 0
    if m.layout == N64:
        chunks = (begin // 64) * m.of_64 // 16
        index = m.places + tile * (m.quads // 16 * m.of_64 // 16 * 192) + 192 * chunks
        return _n64_group(isa, m, code_at + 128 * chunks, index, x + begin, length // 128), 0
    kept = m.kept + tile * (m.quads // 16) + begin // 64
    return _block_group(isa, code_at + 64 * blocks_done, kept, x + begin, length // 128)


@jit
def _other_tile(isa, m, tile, planes, digits, scales):
    """Return the products of a tile of any other layout."""
    if m.layout == NM4:
        code_at = m.codes + tile * (16 * m.quads)
    elif m.layout == N64:
        code_at = m.codes + tile * (m.quads // 16 * m.of_64 // 16 * 128)
    else:
        code_at = m.codes + load_u32(m.offsets + 4 * tile)
    acc, done = no_floats(), np.int64(0)
    for group in range(m.groups):
        scale_at = m.scales + 32 * (tile * m.groups + group)
        prefetch(scale_at + SCALES_AHEAD)
        sums, blocks = _tile_group(isa, m, tile, group, code_at, done, digits)
        total = to_float(sums)
        if planes == 2:
            low, _ = _tile_group(isa, m, tile, group, code_at, done, digits + 4 * m.quads)
            total = add_f(multiply(total, all_floats(np.float32(256))), to_float(low))
        done += blocks
        acc = add_group(acc, total, scale_at, scales[group])
    return acc


@jit
def _tiles(isa, m, planes, digits, scales, room, out, first, last):
    """Tiles ``first:last`` by one row of digits at address ``digits``, results at ``out``.

    ``room`` is the address of ``room_nbytes`` bytes for packed digits.
    """
    for tile in range(first, last):
        if m.layout == COLUMN16:
            acc = _column16_tile(isa, m, tile, planes, digits, scales, room)
        else:
            acc = _other_tile(isa, m, tile, planes, digits, scales)
        store_tile(m, tile, acc, out)


@jit
def _no_tiles(isa, m, planes, digits, scales, room, out, first, last):
    """Without gathers: no matrix gets here, ``dispatch.can_gather`` refuses all."""


gather_tiles = by_isa(lambda isa: _tiles if isa.isa in GROUPS else _no_tiles)


def room_nbytes(quads: int, groups: int, planes: int) -> int:
    """Return the bytes of room that a thread needs.

    Each group's digits end with a whole quad and a whole register; then counts and sums.
    """
    return planes * (4 * quads + 4 * groups + 64) + 12 * groups


class GatherRoom(NamedTuple):
    """Room to work in.

    digits int8 [planes * padded K], scales float32 [G], sums int32 [planes * G]; digits of kept
    columns, packed int8 [threads, ``room_nbytes``].
    """

    digits: NDArray[np.int8]
    scales: NDArray[np.float32]
    sums: NDArray[np.int32]
    packed: NDArray[np.int8]


def numbers_of(m: GatherOperand, planes: int, room: GatherRoom) -> NDArray[np.int64]:
    """Return a matrix and the room to work in as int64 [19], as ``calls.numbers_of`` does."""
    threads, nbytes = room.packed.shape
    return np.array([*m, planes, threads, *(a.ctypes.data for a in room), nbytes], np.int64)


@jit
def _opened(n):
    """Return the matrix, planes and threads of ``numbers_of``."""
    m = GatherOperand(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11])
    return m, n[12], n[13]


@jit
def _quantized(n, x, row):
    """Write the digits of a row of the activations at ``x``; return how many threads share."""
    m, planes, threads = _opened(n)
    digits = carray(as_pointer(n[14]), (planes * 4 * m.quads,), np.int8)
    scales = carray(as_pointer(n[15]), (m.groups,), np.float32)
    sums = carray(as_pointer(n[16]), (planes * m.groups,), np.int32)
    quantize(m, planes, x + 4 * row * m.columns, digits, scales, sums)
    return threads


@jit
def _share(isa, n, row, thread, out):
    """Multiply the tiles of one thread by the digits of a row."""
    m, planes, threads = _opened(n)
    scales = carray(as_pointer(n[15]), (m.groups,), np.float32)
    tiles = (m.rows + 15) // 16
    first, last = tiles * thread // threads, tiles * (thread + 1) // threads
    room = n[17] + thread * n[18]
    gather_tiles(isa, m, planes, n[14], scales, room, out + 4 * row * m.rows, first, last)


def _run(isa, numbers, x, out):
    """``out[b] = weights @ x[b]`` for what ``numbers_of`` wrote."""
    x_at, out_at = np.int64(x.ctypes.data), np.int64(out.ctypes.data)
    for row in range(len(x)):
        for thread in prange(_quantized(numbers, x_at, row)):
            _share(isa, numbers, row, thread, out_at)


run, run_parallel = serial_and_parallel(_run)
