"""The plain NumPy version of everything: slow, short, and what every kernel must equal."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels import structured
from edgesparse_kernels.layout import CELL, PLANES, QUAD, TILE_ROWS, quads, streams, tiles
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix

T = TypeVar("T", bound=np.generic)


def decode(matrix: PackedMatrix | StructuredMatrix) -> NDArray[np.float32]:
    """Return the weights, float32 [N, K]."""
    codes = decode_codes(matrix)
    if matrix.bits == 16:
        return codes.astype(np.uint16).view(np.float16).astype(np.float32)
    if isinstance(matrix, PackedMatrix) and matrix.has_table:
        return _looked_up(matrix, codes)
    group = np.arange(matrix.columns) // matrix.group_size
    weights: NDArray[np.float32] = codes.astype(np.float32) * row_scales(matrix)[:, group]
    return weights


def row_scales(matrix: PackedMatrix | StructuredMatrix) -> NDArray[np.float32]:
    """Return the scales, float32 [N, groups]."""
    return _by_row(matrix, matrix.scales.view(np.float16)).astype(np.float32)


def decode_codes(matrix: PackedMatrix | StructuredMatrix) -> NDArray[np.int32]:
    """Return int32 [N, K]: what scales multiply, or the words of float16 values, or indices.

    With zeros it is code - zero. What is not kept is 0, or -1 where indices are.
    """
    if isinstance(matrix, StructuredMatrix):
        return structured.decode_codes(matrix)
    count, width = tiles(matrix.rows), quads(matrix.columns)
    cells = np.zeros((count, width, CELL), np.int32)
    kept = np.zeros(cells.shape, np.bool_)
    for tile in range(count):
        keep = _keep(matrix, tile, width)
        shift = 0
        for plane, bits in enumerate(PLANES[matrix.bits]):
            cells[tile] |= _plane(matrix, tile, plane, bits, keep) << shift
            shift += bits
        if matrix.bits < 16 and not matrix.has_table:
            sign = 1 << (matrix.bits - 1)
            cells[tile] = (cells[tile] ^ sign) - sign
        kept[tile] = keep
    codes = _from_cells(matrix, cells)
    if matrix.zeros.size:
        group = np.arange(matrix.columns) // matrix.group_size
        codes = codes - _by_row(matrix, matrix.zeros)[:, group]
    return np.where(_from_cells(matrix, kept), codes, np.int32(-1 if matrix.has_table else 0))


def matmul(x: NDArray[np.float32], matrix: PackedMatrix | StructuredMatrix) -> NDArray[np.float32]:
    """Return ``x @ weights.T``, float32 [M, N], for x of shape [M, K]."""
    product: NDArray[np.float32] = x @ decode(matrix).T
    return product


def _by_row(matrix: PackedMatrix | StructuredMatrix, stored: NDArray[T]) -> NDArray[T]:
    """Return what is stored as [tiles, groups, 16], [N, groups]."""
    used = stored[: tiles(matrix.rows) * matrix.groups * TILE_ROWS]
    by_row = used.reshape(tiles(matrix.rows), matrix.groups, TILE_ROWS).transpose(0, 2, 1)
    return by_row.reshape(tiles(matrix.rows) * TILE_ROWS, matrix.groups)[: matrix.rows]


def _from_cells(matrix: PackedMatrix, cells: NDArray[T]) -> NDArray[T]:
    """Return what is in cells [tiles, quads, 64] as a matrix, [N, K]."""
    count, width, _ = cells.shape
    lanes = cells.reshape(count, width, TILE_ROWS, QUAD).transpose(0, 2, 1, 3)
    return lanes.reshape(count * TILE_ROWS, width * QUAD)[: matrix.rows, : matrix.columns]


def _looked_up(matrix: PackedMatrix, indices: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the entries of the tables that indices [N, K] stand for, 0 for -1."""
    entries = matrix.table.view(np.float16).astype(np.float32)
    table = np.arange(matrix.rows) // (matrix.table_rows or max(1, matrix.rows))
    found = entries[np.maximum(indices, 0) + (table << matrix.bits)[:, None]]
    return np.where(indices < 0, np.float32(0), found)


def _keep(matrix: PackedMatrix, tile: int, width: int) -> NDArray[np.bool_]:
    """Return which lanes of a tile are stored, [quads, 64]."""
    if matrix.is_dense:
        return np.ones((width, CELL), np.bool_)
    words = matrix.mask[tile * width : (tile + 1) * width]
    bits: NDArray[np.bool_] = (words[:, None] >> np.arange(CELL, dtype=np.uint64)) % 2 == 1
    return bits


def _plane(
    matrix: PackedMatrix, tile: int, plane: int, width: int, keep: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Return one plane's part of the codes of a tile, int32 [quads, 64]."""
    stored = matrix.codes_high if plane else matrix.codes
    begin = int(matrix.tile_begins(plane)[tile])
    words = stored.view(np.uint16)[begin // 2 :] if width == 16 else stored[begin:]
    part = np.zeros(keep.shape, np.int32)
    for j in range(streams(width)):
        chosen = keep[j :: streams(width)]
        codes = words[: np.count_nonzero(chosen)].astype(np.int32) >> (width * j)
        part[j :: streams(width)][chosen] = codes & ((1 << width) - 1)
    return part
