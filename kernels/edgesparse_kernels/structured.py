"""Packed matrices with structured masks: what kernels take, and their NumPy decoding.

The layouts are those of edgesparse/formats/{nm4,n64,column16,block16x8}.md; all have 4-bit codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels.layout import CELL, QUAD, TILE_ROWS, padded_columns, tiles

LAYOUTS = ("nm4", "n64", "column16", "block16x8")


@dataclass(frozen=True, kw_only=True, eq=False)
class StructuredMatrix:
    """N rows by K columns in one of the structured layouts.

    The arrays are used as they are; whoever opened the pack has checked them.

    Attributes:
        layout: One of ``LAYOUTS``.
        rows: N.
        columns: K.
        group_size: Columns per scale.
        codes: uint8.
        scales: float16 as uint16 words, [tiles, groups, 16].
        index: uint8, places of the kept weights; nm4 and n64.
        kept: uint8, bitmap of kept columns or octets; column16 and block16x8.
        offsets: uint32 [tiles + 1], first byte of each tile; column16 and block16x8.
    """

    layout: str
    rows: int
    columns: int
    group_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint16]
    index: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    kept: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    offsets: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    bits: int = 4

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.columns // self.group_size)

    @property
    def of_64(self) -> int:
        """The n of n64: weights kept in every window of 64 columns."""
        windows = tiles(self.rows) * padded_columns(self.columns) // 64
        return self.codes.size // (8 * windows) if windows else 0

    @property
    def density(self) -> float:
        """The part of the padded weights that has a code."""
        padded = tiles(self.rows) * TILE_ROWS * padded_columns(self.columns)
        return 2 * self.codes.size / padded if padded else 0.0


def decode_codes(matrix: StructuredMatrix) -> NDArray[np.int32]:
    """Return the codes, int32 [N, K]."""
    decoded = {"nm4": _nm4, "n64": _n64, "column16": _column16, "block16x8": _block16x8}
    nibbles = decoded[matrix.layout](matrix)[: matrix.rows, : matrix.columns].astype(np.int32)
    return (nibbles ^ 8) - 8


def _nibbles(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return low and high halves of every ``width`` bytes, [blocks, 2, width]."""
    blocks = codes.reshape(-1, width)
    return np.stack([blocks & np.uint8(15), blocks >> np.uint8(4)], axis=1)


def _nm4(matrix: StructuredMatrix) -> NDArray[np.uint8]:
    count, width = tiles(matrix.rows), padded_columns(matrix.columns)
    index = matrix.index.reshape(-1, CELL)
    places = np.stack([index >> np.uint8(2 * k) & np.uint8(3) for k in range(4)], axis=1)
    shape = (count, width // 8, TILE_ROWS, 2, 2)
    dense = np.zeros((count, width // 8, TILE_ROWS, 2, QUAD), np.uint8)
    chosen = places.reshape(shape).astype(np.intp)
    np.put_along_axis(dense, chosen, _nibbles(matrix.codes, CELL).reshape(shape), axis=4)
    return dense.transpose(0, 2, 1, 3, 4).reshape(count * TILE_ROWS, width)


def _n64(matrix: StructuredMatrix) -> NDArray[np.uint8]:
    count, windows = tiles(matrix.rows), padded_columns(matrix.columns) // 64
    index = matrix.index.reshape(-1, 3, CELL)
    low = _nibbles(index[:, :2].reshape(-1), CELL).reshape(-1, 4, CELL)
    high = np.stack([index[:, 2] >> np.uint8(2 * q) & np.uint8(3) for q in range(4)], axis=1)
    codes = _nibbles(matrix.codes, CELL)

    def by_window(quarters: NDArray[np.uint8]) -> NDArray[np.uint8]:
        split = quarters.reshape(count, windows * matrix.of_64 // 4, TILE_ROWS, 4)
        moved = split.transpose(0, 2, 1, 3)
        return moved.reshape(count, TILE_ROWS, windows, matrix.of_64)

    dense = np.zeros((count, TILE_ROWS, windows, 64), np.uint8)
    places = by_window(low | high << np.uint8(4)).astype(np.intp)
    np.put_along_axis(dense, places, by_window(codes), axis=3)
    return dense.reshape(count * TILE_ROWS, windows * 64)


def _column16(matrix: StructuredMatrix) -> NDArray[np.uint8]:
    count, width = tiles(matrix.rows), padded_columns(matrix.columns)
    bits = np.unpackbits(matrix.kept, bitorder="little")[: count * width].reshape(count, width)
    dense = np.zeros((count, TILE_ROWS, width), np.uint8)
    for tile in range(count):
        stored = matrix.codes[matrix.offsets[tile] : matrix.offsets[tile + 1]]
        quads = _nibbles(stored, CELL).reshape(-1, TILE_ROWS, QUAD)
        first = 0
        for begin in range(0, matrix.columns, matrix.group_size):
            columns = begin + np.flatnonzero(bits[tile, begin : begin + matrix.group_size])
            used = -(-len(columns) // QUAD)
            block = quads[first : first + used].transpose(1, 0, 2).reshape(TILE_ROWS, -1)
            dense[tile][:, columns] = block[:, : len(columns)]
            first += used
    return dense.reshape(count * TILE_ROWS, width)


def _block16x8(matrix: StructuredMatrix) -> NDArray[np.uint8]:
    count, octets = tiles(matrix.rows), padded_columns(matrix.columns) // 8
    bits = np.unpackbits(matrix.kept, bitorder="little")[: count * octets].astype(np.bool_)
    dense = np.zeros((count * octets, 2, TILE_ROWS, QUAD), np.uint8)
    dense[bits] = _nibbles(matrix.codes, CELL).reshape(-1, 2, TILE_ROWS, QUAD)
    split = dense.reshape(count, octets, 2, TILE_ROWS, QUAD).transpose(0, 3, 1, 2, 4)
    return split.reshape(count * TILE_ROWS, octets * 8)
