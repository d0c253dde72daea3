"""From Python to the vector kernels: addresses, room to work in, the instruction set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels import _isa, _jit, tiled, tiles
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.layout import CELL, quads
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import LAYOUTS, StructuredMatrix

if TYPE_CHECKING:
    from edgesparse_kernels.gather import GatherOperand

MAX_BATCH = 64  # rows whose digits and sums are held at once


IntegerCall = tuple[Callable[..., None], _isa.InstructionSet, tiles.Operand, int, tiles.Scratch]


def matmul(
    x: NDArray[np.float32],
    matrix: PackedMatrix,
    kind: Activations,
    threads: int,
    out: NDArray[np.float32],
) -> None:
    """Write ``x @ weights.T`` into ``out`` with the best instruction set there is.

    With integers that set is chosen when a matrix is first multiplied.
    """
    for begin in range(0, len(x), MAX_BATCH):
        rows, to = x[begin : begin + MAX_BATCH], out[begin : begin + MAX_BATCH]
        if kind is Activations.FLOAT32:
            _matmul_float(rows, matrix, threads, to)
        else:
            key = (kind, len(rows), threads, threading.get_ident())
            # The last call is remembered: to find all it needs takes as long as a small product.
            known = matrix.__dict__.get("_call")
            if known is None or known[0] != key:
                known = (key, *_integer_call(matrix, kind, rows, threads, to))
                matrix.__dict__["_call"] = known
            _, run, isa, numbers, planes, scratch = known
            run(isa, numbers, planes, rows, threads, scratch, to)


def _matmul_float(
    x: NDArray[np.float32], matrix: PackedMatrix, threads: int, out: NDArray[np.float32]
) -> None:
    numbers = operand(matrix)
    padded = np.zeros((len(x), 4 * numbers.quads), np.float32)
    padded[:, : matrix.columns] = x
    run = tiled.multiply_float if threads == 1 else tiled.multiply_float_parallel
    run(_isa.best(), numbers, padded, threads, _scratch(numbers, 1, len(x), threads), out)


def _integer_call(
    matrix: PackedMatrix,
    kind: Activations,
    x: NDArray[np.float32],
    threads: int,
    out: NDArray[np.float32],
) -> IntegerCall:
    """Return the compiled kernel and what it takes beside activations and results."""
    isa, numbers = _isa.best(), operand(matrix)
    scratch = _scratch(numbers, kind.planes, len(x), threads)
    go = tiled.multiply_integer if threads == 1 else tiled.multiply_integer_parallel
    run = _jit.entry(go, isa, numbers, kind.planes, x, threads, scratch, out)
    return run, isa, numbers, kind.planes, scratch


def decode(matrix: PackedMatrix, threads: int, out: NDArray[np.float32]) -> None:
    """Write the weights into ``out``, float32 [N, K]."""
    numbers = operand(matrix)
    scratch = _scratch(numbers, 1, 4, threads)
    if not matrix.is_symmetric:
        from edgesparse_kernels import schemes

        go = schemes.decode if threads == 1 else schemes.decode_parallel
        room = _chunks(threading.get_ident(), threads)
        go(_isa.best(), numbers, _scheme(matrix), threads, scratch, room, out)
        return
    run = tiled.decode if threads == 1 else tiled.decode_parallel
    run(_isa.best(), numbers, threads, scratch, out)


def matmul_schemes(
    x: NDArray[np.float32],
    matrix: PackedMatrix,
    kind: Activations,
    threads: int,
    out: NDArray[np.float32],
) -> None:
    """Write ``x @ weights.T`` into ``out`` for codes with zeros, or with FLOAT32 for tables."""
    from edgesparse_kernels import schemes

    isa, numbers = _isa.best(), operand(matrix)
    for begin in range(0, len(x), MAX_BATCH):
        rows, to = x[begin : begin + MAX_BATCH], out[begin : begin + MAX_BATCH]
        scratch = _scratch(numbers, max(1, kind.planes), len(rows), threads)
        if kind is Activations.FLOAT32:
            padded = np.zeros((len(rows), 4 * numbers.quads), np.float32)
            padded[:, : matrix.columns] = rows
            run = schemes.multiply_floats if threads == 1 else schemes.multiply_floats_parallel
            room = _chunks(threading.get_ident(), threads)
            run(isa, numbers, _scheme(matrix), padded, threads, scratch, room, to)
        else:
            go = schemes.multiply_integer if threads == 1 else schemes.multiply_integer_parallel
            go(isa, numbers, _scheme(matrix)[0], kind.planes, rows, threads, scratch, to)


@lru_cache(maxsize=8)
def _chunks(caller: int, threads: int) -> NDArray[np.float32]:
    """Return room for the weights of one chunk of each thread."""
    return np.empty((threads, CELL * tiles.CHUNK), np.float32)


def _scheme(matrix: PackedMatrix) -> tuple[int, int, int, int]:
    """Return addresses of zeros and tables, rows and entries of a table; 0 entries without.

    Tables are float32, entries where decoded lanes look for them, and a 0 after the last; all of
    them are followed by 16 floats, for a register may be loaded at any.
    """
    if not matrix.has_table:
        return matrix.zeros.ctypes.data, 0, 0, 0
    known: NDArray[np.float32] | None = matrix.__dict__.get("_table")
    size = (1 << matrix.bits) + 1
    if known is None:
        stored = matrix.table.view(np.float16)
        count = -(-matrix.rows // matrix.table_rows) if matrix.table_rows else 1
        room = np.zeros(count * size + 16, np.float32)
        known = room[: count * size].reshape(count, size)
        entries = stored[: count * (size - 1)].reshape(count, size - 1)
        known[:, np.arange(size - 1) ^ (size // 2)] = entries
        matrix.__dict__["_table"] = known
    return 0, known.ctypes.data, matrix.table_rows, size


_GROUP_MULTIPLE = {"nm4": 32, "n64": 128, "column16": 64, "block16x8": 128}


def can_gather(matrix: StructuredMatrix) -> bool:
    """Whether there are vector kernels for it here, and its groups are whole steps of theirs."""
    whole = matrix.group_size % _GROUP_MULTIPLE[matrix.layout] == 0
    return (
        matrix.columns > 0
        and (whole or matrix.group_size >= matrix.columns)
        and _isa.best() is not _isa.GENERIC
    )


def gather(
    x: NDArray[np.float32],
    matrix: StructuredMatrix,
    kind: Activations,
    threads: int,
    out: NDArray[np.float32],
) -> None:
    """Write ``x @ weights.T`` into ``out`` for a structured mask and integer activations."""
    key = (kind, threads, threading.get_ident())
    known = matrix.__dict__.get("_call")
    if known is None or known[0] != key:
        known = matrix.__dict__["_call"] = (key, *_gather_call(matrix, kind, x, threads, out))
    _, run, isa, numbers, room = known
    run(isa, numbers, kind.planes, x, threads, *room, out)


def _gather_call(
    matrix: StructuredMatrix,
    kind: Activations,
    x: NDArray[np.float32],
    threads: int,
    out: NDArray[np.float32],
) -> tuple[Callable[..., None], _isa.InstructionSet, GatherOperand, GatherRoom]:
    """Return the compiled kernel, the matrix as numbers and room to work in."""
    from edgesparse_kernels import gather as kernels

    isa, numbers = _isa.best(), gather_operand(matrix)
    room = _gather_room(threading.get_ident(), numbers.quads, matrix.groups, kind.planes, threads)
    go = kernels.run if threads == 1 else kernels.run_parallel
    run = _jit.entry(go, isa, numbers, kind.planes, x, threads, *room, out)
    return run, isa, numbers, room


GatherRoom = tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32], NDArray[np.int8]]


# Kept from call to call, for each thread that calls.
@lru_cache(maxsize=32)
def _gather_room(
    caller: int, quad_count: int, groups: int, planes: int, threads: int
) -> GatherRoom:
    """Return digits, their scales and sums, and for each thread room to pack digits in."""
    from edgesparse_kernels.gather import room_nbytes

    return (
        np.empty(planes * 4 * quad_count, np.int8),
        np.empty(groups, np.float32),
        np.empty(planes * groups, np.int32),
        np.empty((threads, room_nbytes(quad_count, groups, planes)), np.int8),
    )


def gather_operand(matrix: StructuredMatrix) -> GatherOperand:
    """Return a structured matrix as numbers; it must outlive their use."""
    from edgesparse_kernels.gather import GatherOperand

    known: GatherOperand | None = matrix.__dict__.get("_operand")
    if known is None:
        width = quads(matrix.columns)
        one = matrix.group_size >= matrix.columns
        known = GatherOperand(
            layout=LAYOUTS.index(matrix.layout),
            rows=matrix.rows,
            columns=matrix.columns,
            group_size=4 * width if one else matrix.group_size,
            groups=matrix.groups,
            quads=width,
            of_64=matrix.of_64,
            places=matrix.index.ctypes.data,
            kept=matrix.kept.ctypes.data,
            codes=matrix.codes.ctypes.data,
            offsets=matrix.offsets.ctypes.data,
            scales=matrix.scales.ctypes.data,
        )
        matrix.__dict__["_operand"] = known
    return known


def operand(matrix: PackedMatrix) -> tiles.Operand:
    """Return a matrix as numbers; it must outlive their use."""
    known: tiles.Operand | None = matrix.__dict__.get("_operand")
    if known is None:
        width = quads(matrix.columns)
        # One scale a row is one group of whole octets, whatever the number of columns.
        one = matrix.has_table or matrix.group_size >= matrix.columns
        known = tiles.Operand(
            rows=matrix.rows,
            columns=matrix.columns,
            bits=matrix.bits,
            group_size=4 * width if one else matrix.group_size,
            groups=1 if matrix.has_table else matrix.groups,
            quads=width,
            is_dense=int(matrix.is_dense),
            mask=matrix.mask.ctypes.data,
            codes=matrix.codes.ctypes.data,
            offsets=matrix.offsets.ctypes.data,
            codes_high=matrix.codes_high.ctypes.data,
            offsets_high=matrix.offsets_high.ctypes.data,
            scales=matrix.scales.ctypes.data,
        )
        matrix.__dict__["_operand"] = known
    return known


def _scratch(m: tiles.Operand, planes: int, batch: int, threads: int) -> tiles.Scratch:
    """Return room for one call, which nothing else of this thread uses meanwhile."""
    return _room(threading.get_ident(), m.quads, m.groups, planes, batch, threads)


# Kept likewise: making seven arrays takes as long as a small product.
@lru_cache(maxsize=32)
def _room(
    caller: int, quad_count: int, groups: int, planes: int, batch: int, threads: int
) -> tiles.Scratch:
    return tiles.Scratch(
        digits=np.empty((batch, planes * 4 * quad_count), np.int8),
        scales=np.empty((batch, groups), np.float32),
        sums=np.empty((batch, planes * groups), np.int32),
        lanes=np.empty((threads, CELL * tiles.CHUNK + CELL), np.uint8),
        streams=np.empty((threads, 2, 8), np.int64),
        totals=np.empty((threads, planes * batch + 3, 16), np.int32),
        acc=np.empty((threads, batch, 16), np.float32),
    )
