"""Matrices to cells and back: the padding and the lane order that every layout shares."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from edgesparse_kernels.layout import ALIGNMENT, CELL, QUAD, TILE_ROWS, padded_columns, quads, tiles
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def to_cells(matrix: NDArray[T]) -> NDArray[T]:
    """Return ``matrix`` [N, K] as [tiles, quads, 64], padded with zeros.

    Lane ``4 * r + c`` of a cell is row ``r`` of the tile and column ``c`` of the quad.
    """
    rows, columns = matrix.shape
    padded = np.zeros((tiles(rows) * TILE_ROWS, padded_columns(columns)), matrix.dtype)
    padded[:rows, :columns] = matrix
    split = padded.reshape(tiles(rows), TILE_ROWS, quads(columns), QUAD)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(
        tiles(rows), quads(columns), CELL
    )


def from_cells(cells: NDArray[T], rows: int, columns: int) -> NDArray[T]:
    """Return the matrix [rows, columns] in ``cells``; the inverse of ``to_cells``."""
    split = cells.reshape(tiles(rows), quads(columns), TILE_ROWS, QUAD).transpose(0, 2, 1, 3)
    padded = split.reshape(tiles(rows) * TILE_ROWS, padded_columns(columns))
    return np.ascontiguousarray(padded[:rows, :columns])


def tile_scales(scales: NDArray[T]) -> NDArray[T]:
    """Return ``scales`` [N, G] as the stored [tiles, G, 16], flat; rows of padding have 0."""
    rows, groups = scales.shape
    padded = np.zeros((tiles(rows) * TILE_ROWS, groups), scales.dtype)
    padded[:rows] = scales
    split = padded.reshape(tiles(rows), TILE_ROWS, groups).transpose(0, 2, 1)
    return pad_buffer(np.ascontiguousarray(split).reshape(-1))


def untile_scales(buffer: NDArray[T], rows: int, groups: int) -> NDArray[T]:
    """Return the scales [rows, groups] in a stored buffer; the inverse of ``tile_scales``."""
    stored = buffer[: tiles(rows) * groups * TILE_ROWS].reshape(tiles(rows), groups, TILE_ROWS)
    return np.ascontiguousarray(
        stored.transpose(0, 2, 1).reshape(tiles(rows) * TILE_ROWS, groups)[:rows]
    )


def pad_buffer(flat: NDArray[T], *, slack_nbytes: int = 0) -> NDArray[T]:
    """Return ``flat`` with zeros up to a multiple of 64 bytes, and ``slack_nbytes`` after that."""
    nbytes = -(-flat.nbytes // ALIGNMENT) * ALIGNMENT + slack_nbytes
    padded = np.zeros(nbytes // flat.itemsize, flat.dtype)
    padded[: flat.size] = flat
    return padded
