"""column16: whole columns of 16 rows kept or removed, 4-bit codes; byte map in column16.md."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar

import numpy as np
from edgesparse_kernels.layout import CELL, QUAD, TILE_ROWS, aligned, padded_columns, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack
from edgesparse.formats.checks import check_buffer
from edgesparse.formats.structured import Structured
from edgesparse.formats.tiles import pad_buffer
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.pattern import Pattern


class Column16(Structured):
    """Every tile has its own columns; those of a group are stored as whole quads."""

    name: ClassVar[str] = "column16"
    serves: ClassVar[str] = "blocks of 16 rows (or a multiple) by 1 column"

    def suits(self, pattern: Pattern) -> bool:
        """Whether masks of ``pattern`` can be stored."""
        return pattern.block[0] % TILE_ROWS == 0 and pattern.block[1] == 1

    def _predict(self, spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
        count = tiles(rows)
        full, last = divmod(columns, spec.group_size)
        keep = 1 - spec.pattern.sparsity
        quads = full * _expected_quads(spec.group_size, keep) + _expected_quads(last, keep)
        # Half a tile's last blocks hold one quad.
        blocks = count * (quads / 2 + 0.25 * (not float(quads).is_integer()))
        return {
            "columns": aligned(count * padded_columns(columns) // 8),
            "offsets": aligned(4 * (count + 1)),
            "codes": CELL * math.ceil(blocks),
        }

    def _buffers(
        self, values: NDArray[np.uint8], keep: NDArray[np.bool_], group_size: int, pattern: Pattern
    ) -> dict[str, NDArray[np.generic]]:
        rows, columns = values.shape
        count, width = tiles(rows), padded_columns(columns)
        padded = np.zeros((count * TILE_ROWS, width), np.uint8)
        padded[:rows, :columns] = values
        mask = np.zeros(padded.shape, np.bool_)
        mask[:rows, :columns] = keep
        kept = np.asarray(mask.reshape(count, TILE_ROWS, width).any(axis=1))
        quad, place, offsets = _positions(kept, group_size)
        cells = np.zeros((2 * int(offsets[-1]) // CELL, TILE_ROWS, QUAD), np.uint8)
        tile, column = np.nonzero(kept)
        cells[quad, :, place] = padded.reshape(count, TILE_ROWS, width)[tile, :, column]
        pairs = cells.reshape(-1, 2, CELL)
        words = np.packbits(kept, axis=1, bitorder="little").reshape(-1).view(np.uint64)
        return {
            "columns": pad_buffer(words),
            "offsets": pad_buffer(offsets.astype(np.uint32)),
            "codes": (pairs[:, 0] | pairs[:, 1] << np.uint8(4)).reshape(-1),
        }

    def _check_buffers(self, packed: PackedTensor, rows: int, columns: int) -> None:
        count = tiles(rows)
        kept = self._kept(packed, rows, columns)
        _, _, expected = _positions(kept, packed.spec.group_size)
        offsets = check_buffer(packed, "offsets", np.uint32, aligned(4 * (count + 1)))
        stored = offsets.view(np.uint32)
        if not np.array_equal(stored[: count + 1], expected) or stored[count + 1 :].any():
            raise CorruptPack(f"{self.name}: 'offsets' does not follow from 'columns'")
        check_buffer(packed, "codes", np.uint8, int(expected[-1]))

    def _kept(self, packed: PackedTensor, rows: int, columns: int) -> NDArray[np.bool_]:
        """Return which columns each tile keeps, [tiles, padded K]."""
        count, width = tiles(rows), padded_columns(columns)
        words = check_buffer(packed, "columns", np.uint64, aligned(count * width // 8))
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)
        kept = bits[: count * width].reshape(count, width)
        if np.count_nonzero(bits) != np.count_nonzero(kept[:, :columns]):
            raise CorruptPack(f"{self.name}: a column outside of {packed.shape} is kept")
        return kept

    def _unpack_matrix(
        self, packed: PackedTensor, rows: int, columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        kept = self._kept(packed, rows, columns)
        quad, place, _ = _positions(kept, packed.spec.group_size)
        stored = packed.require("codes", np.uint8).view(np.uint8).reshape(-1, CELL)
        cells = np.stack([stored & np.uint8(15), stored >> np.uint8(4)], axis=1)
        cells = cells.reshape(-1, TILE_ROWS, QUAD)
        tile, column = np.nonzero(kept)
        values = np.zeros((len(kept), TILE_ROWS, kept.shape[1]), np.uint8)
        values[tile, :, column] = cells[quad, :, place]
        matrix = values.reshape(len(kept) * TILE_ROWS, kept.shape[1])[:rows, :columns]
        if np.count_nonzero(matrix) != np.count_nonzero(cells):
            raise CorruptPack(f"{self.name}: a code that belongs to no column is not zero")
        keep = np.repeat(kept[:, :columns], TILE_ROWS, axis=0)[:rows]
        return matrix.copy(), keep


def _positions(
    kept: NDArray[np.bool_], group_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the quad and the place in it of every kept column, and the tiles' byte offsets."""
    count, width = kept.shape
    begins = np.arange(0, width, min(group_size, max(width, 1)))
    in_group = np.zeros((count, 0), np.int64)
    if width:
        in_group = np.add.reduceat(kept, begins, axis=1, dtype=np.int64)
    quads = -(-in_group // QUAD)
    blocks = -(-quads.sum(axis=1) // 2)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks * CELL)])
    first = np.cumsum(quads, axis=1) - quads + (offsets[:-1] // CELL * 2)[:, None]
    tile, column = np.nonzero(kept)
    group = column // group_size
    # Rank of a kept column in its group: kept columns so far, less those of earlier groups.
    rank = (
        np.arange(len(tile))
        - (np.cumsum(in_group) - in_group.reshape(-1)).reshape(in_group.shape)[tile, group]
    )
    return first[tile, group] + rank // QUAD, rank % QUAD, offsets


@lru_cache(maxsize=1024)
def _expected_quads(columns: int, keep: float) -> float:
    """Return the expected quads of a group of ``columns`` of which each is kept by chance."""
    counts = np.arange(columns + 1)
    log = np.array([math.lgamma(columns + 1) - math.lgamma(k + 1) - math.lgamma(columns - k + 1)
                    for k in counts])  # fmt: skip
    if keep >= 1:
        return float(-(-columns // QUAD))
    chance = np.exp(log + counts * math.log(keep) + (columns - counts) * math.log1p(-keep))
    return float(np.sum(chance * -(-counts // QUAD)))


COLUMN16 = Column16()
