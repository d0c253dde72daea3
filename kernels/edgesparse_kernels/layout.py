"""The geometry all packed layouts share: tiles, quads, cells, planes, streams.

A matrix of N rows and K columns is padded to multiples of 16 rows and 128 columns. A tile is 16
rows, a quad 4 neighbouring columns, a cell the 64 weights of a quad in a tile; lane ``4 * r + c``
of a cell is row ``r`` and column ``c`` within it. A code is cut into planes; a plane of width ``w <
16`` has ``8 / w`` streams that share its bytes: quad ``q`` goes to stream ``q % streams``, whose
codes sit in the bits ``[w * stream, w * stream + w)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

TILE_ROWS = 16
QUAD = 4
CELL = TILE_ROWS * QUAD
COLUMN_MULTIPLE = 128  # 32 quads: every plane's streams get equally many of them
ALIGNMENT = 64  # bytes; every buffer is a multiple of it
SLACK = 64  # bytes after the last code of a stream, so that a vector load may start at any code

PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,), 16: (16,)}
"""Widths of the planes of a code, lowest bits first."""


def tiles(rows: int) -> int:
    """Return how many tiles ``rows`` rows take."""
    return -(-rows // TILE_ROWS)


def padded_columns(columns: int) -> int:
    """Return ``columns`` rounded up to whole quads of every stream."""
    return -(-columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def quads(columns: int) -> int:
    """Return the quads of a padded row."""
    return padded_columns(columns) // QUAD


def streams(width: int) -> int:
    """Return how many streams share the bytes of a plane of ``width`` bits."""
    return max(1, 8 // width)


def code_nbytes(width: int) -> int:
    """Return the bytes one position of a plane takes: 2 for 16-bit values, else 1."""
    return max(1, width // 8)


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array whose first byte begins a cache line, as those of a mapped file do.

    NumPy's own begin anywhere at 16 bytes, and three of four vectors there lie in two lines.
    """
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + nbytes].view(dtype).reshape(shape)


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same values where ``empty`` puts them."""
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def aligned(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to the alignment of buffers."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
