"""From Python to the vector kernels: addresses, room to work in, the instruction set."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels import _isa, _jit, calls, tiled, tiles
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.layout import CELL, aligned, empty, quads
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import LAYOUTS, StructuredMatrix

if TYPE_CHECKING:
    from edgesparse_kernels.gather import GatherOperand, GatherRoom

Call = Callable[[NDArray[np.float32], NDArray[np.float32]], None]
"""Writes ``x @ weights.T`` into its second argument, for x of the shape it was made for."""


def product(matrix: PackedMatrix, kind: Activations, batch: int, threads: int) -> Call:
    """Return the product with ``batch`` rows, for the thread that asks.

    The instruction set is the best there is now.
    """
    numbers = operand(matrix)
    scratch = _scratch(numbers, max(1, kind.planes), batch, threads)
    if kind is Activations.FLOAT32:
        return partial(_multiply_float, numbers, threads, scratch)
    isa = _isa.best()
    blocks = _blocks(threading.get_ident(), batch * kind.planes, numbers.quads)
    numbered = calls.numbers_of(numbers, kind.planes, scratch, blocks)
    go = tiled.multiply_integer if threads == 1 else tiled.multiply_integer_parallel
    return _kept(_entry(go, isa, numbered), scratch, blocks)


def _multiply_float(
    m: tiles.Operand,
    threads: int,
    scratch: tiles.Scratch,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    padded = np.zeros((len(x), 4 * m.quads), np.float32)
    padded[:, : m.columns] = x
    run = tiled.multiply_float if threads == 1 else tiled.multiply_float_parallel
    run(_isa.best(), m, padded, threads, scratch, out)


def _entry(
    go: Callable[..., None], isa: _isa.InstructionSet, numbers: NDArray[np.int64]
) -> partial[None]:
    """Return a kernel of (isa, numbers, x, out), compiled and given the first two."""
    some = np.empty((1, 1), np.float32)
    return partial(_jit.entry(go, isa, numbers, some, some), isa, numbers)


def _kept(call: partial[None], *arrays: object) -> Call:
    """Return ``call``, which keeps alive the arrays whose addresses it was given."""
    call.arrays = arrays  # type: ignore[attr-defined]
    return call


@lru_cache(maxsize=8)
def _blocks(caller: int, rows: int, quad_count: int) -> NDArray[np.int8]:
    """Return room for ``rows`` rows of digits, rounded up to whole operands of matrix tiles."""
    return empty((-(-rows // 16) * 16 * 4 * quad_count,), np.int8)


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


def product_of_schemes(matrix: PackedMatrix, kind: Activations, batch: int, threads: int) -> Call:
    """Return the same for codes with zeros, or with FLOAT32 for tables."""
    scratch = _scratch(operand(matrix), max(1, kind.planes), batch, threads)
    if kind is Activations.FLOAT32:
        room = _chunks(threading.get_ident(), threads)
        return partial(_multiply_scheme_floats, matrix, threads, scratch, room)
    return partial(_multiply_scheme_integers, matrix, kind, threads, scratch)


def _multiply_scheme_floats(
    matrix: PackedMatrix,
    threads: int,
    scratch: tiles.Scratch,
    room: NDArray[np.float32],
    x: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    from edgesparse_kernels import schemes

    numbers = operand(matrix)
    padded = np.zeros((len(x), 4 * numbers.quads), np.float32)
    padded[:, : matrix.columns] = x
    run = schemes.multiply_floats if threads == 1 else schemes.multiply_floats_parallel
    run(_isa.best(), numbers, _scheme(matrix), padded, threads, scratch, room, out)


def _multiply_scheme_integers(
    matrix: PackedMatrix,
    kind: Activations,
    threads: int,
    scratch: tiles.Scratch,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    from edgesparse_kernels import schemes

    zeros = _scheme(matrix)[0]
    go = schemes.multiply_integer if threads == 1 else schemes.multiply_integer_parallel
    go(_isa.best(), operand(matrix), zeros, kind.planes, x, threads, scratch, out)


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


def gathering_product(matrix: StructuredMatrix, kind: Activations, threads: int) -> Call:
    """Return the product of a structured mask and any number of rows of integer activations."""
    from edgesparse_kernels import gather

    m = gather_operand(matrix)
    room = _gather_room(threading.get_ident(), m.quads, m.groups, kind.planes, threads)
    go = gather.run if threads == 1 else gather.run_parallel
    return _kept(_entry(go, _isa.best(), gather.numbers_of(m, kind.planes, room)), room)


# Kept from call to call, for each thread that calls.
@lru_cache(maxsize=32)
def _gather_room(
    caller: int, quad_count: int, groups: int, planes: int, threads: int
) -> GatherRoom:
    """Return digits, their scales and sums, and for each thread room to pack digits in."""
    from edgesparse_kernels.gather import GatherRoom, room_nbytes

    return GatherRoom(
        digits=empty((planes * 4 * quad_count,), np.int8),
        scales=np.empty(groups, np.float32),
        sums=np.empty(planes * groups, np.int32),
        packed=empty((threads, aligned(room_nbytes(quad_count, groups, planes))), np.int8),
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
    return calls.make_scratch(quad_count, groups, planes, batch, threads)
