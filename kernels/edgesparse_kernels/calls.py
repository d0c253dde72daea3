"""A product as one array of numbers: what a compiled function is handed fastest.

Numba looks at every number and array of a tuple it is given. For a matrix and the room to work in
that takes as long as the product of a small matrix, so both are written down once, addresses and
all, and arrays are made of them again where that costs nothing.
"""

from __future__ import annotations

import numpy as np
from numba import carray
from numpy.typing import NDArray

from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import as_pointer
from edgesparse_kernels.layout import CELL, empty
from edgesparse_kernels.tiles import CHUNK, Operand, Scratch

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


def scratch_shapes(
    quads: int, groups: int, planes: int, batch: int, threads: int
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the arrays of a ``Scratch``, in their order.

    By thread there are lanes twice, and 64 more to begin at a whole cache line; two planes of eight
    streams; sums of whole sixteens of rows twice, and three more; results.
    """
    sums = (planes * batch + 15) // 16 * 16
    return (
        (batch, planes * 4 * quads),
        (batch, groups),
        (batch, planes * groups),
        (threads, 2 * CELL * CHUNK + CELL),
        (threads, 2, 8),
        (threads, 2 * sums + 3, 16),
        (threads, batch, 16),
    )


_shapes = jit(scratch_shapes)
_TYPES = np.int8, np.float32, np.int32, np.uint8, np.int64, np.int32, np.float32


def make_scratch(quads: int, groups: int, planes: int, batch: int, threads: int) -> Scratch:
    """Return room for products of ``batch`` rows of digits by ``threads`` threads."""
    shapes = scratch_shapes(quads, groups, planes, batch, threads)
    return Scratch(*(empty(shape, kind) for shape, kind in zip(shapes, _TYPES, strict=True)))


def numbers_of(
    m: Operand, planes: int, scratch: Scratch, blocks: NDArray[np.int8]
) -> NDArray[np.int64]:
    """Return int64 [24] for ``opened``; the arrays must outlive its use.

    Args:
        m: The matrix.
        planes: Planes of digits of an activation.
        scratch: Room to work in.
        blocks: Room for digits as ``amx_batch.arrange`` writes them.
    """
    batch, threads = len(scratch.digits), len(scratch.lanes)
    addresses = (array.ctypes.data for array in (*scratch, blocks))
    return np.array([*m, planes, batch, threads, *addresses], np.int64)


@jit
def opened(n):
    """Return what ``numbers_of`` wrote: matrix, planes, threads, room, the address of blocks."""
    m = Operand(n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12])
    planes, batch, threads = n[13], n[14], n[15]
    shapes = _shapes(m.quads, m.groups, planes, batch, threads)
    scratch = Scratch(
        carray(as_pointer(n[16]), shapes[0], np.int8),
        carray(as_pointer(n[17]), shapes[1], np.float32),
        carray(as_pointer(n[18]), shapes[2], np.int32),
        carray(as_pointer(n[19]), shapes[3], np.uint8),
        carray(as_pointer(n[20]), shapes[4], np.int64),
        carray(as_pointer(n[21]), shapes[5], np.int32),
        carray(as_pointer(n[22]), shapes[6], np.float32),
    )
    return m, planes, threads, scratch, n[23]
