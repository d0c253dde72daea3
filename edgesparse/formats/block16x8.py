"""block16x8: blocks of 16 rows by 8 columns kept or removed, 4-bit codes; map in block16x8.md."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from edgesparse_kernels.layout import CELL, TILE_ROWS, aligned, padded_columns, quads, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack
from edgesparse.formats.checks import check_buffer
from edgesparse.formats.structured import Structured
from edgesparse.formats.tiles import from_cells, pad_buffer, to_cells
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.pattern import Pattern


class Block16x8(Structured):
    """An octet of columns of a tile is stored if anything in it is kept."""

    name: ClassVar[str] = "block16x8"
    serves: ClassVar[str] = "blocks of 16 rows by 8 columns (or multiples)"

    def suits(self, pattern: Pattern) -> bool:
        """Whether masks of ``pattern`` can be stored."""
        return pattern.block[0] % TILE_ROWS == 0 and pattern.block[1] % 8 == 0

    def _predict(self, spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
        kept = tiles(rows) * -(-columns // 8) * (1 - spec.pattern.sparsity)
        return {**self._fixed(rows, columns), "codes": CELL * round(kept)}

    def _fixed(self, rows: int, columns: int) -> dict[str, int]:
        return {
            "octets": aligned(tiles(rows) * padded_columns(columns) // 64),
            "offsets": aligned(4 * (tiles(rows) + 1)),
        }

    def _buffers(
        self, values: NDArray[np.uint8], keep: NDArray[np.bool_], group_size: int, pattern: Pattern
    ) -> dict[str, NDArray[np.generic]]:
        count, width = tiles(len(values)), quads(values.shape[1])
        kept = np.asarray(to_cells(keep).reshape(count, width // 2, 2 * CELL).any(axis=2))
        pairs = to_cells(values).reshape(count, width // 2, 2, CELL)
        blocks = pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)
        words = np.packbits(kept, axis=1, bitorder="little").reshape(-1).view(np.uint16)
        return {
            "octets": pad_buffer(words),
            "offsets": pad_buffer(_offsets(kept).astype(np.uint32)),
            "codes": np.ascontiguousarray(blocks[kept]).reshape(-1),
        }

    def _kept(self, packed: PackedTensor, rows: int, columns: int) -> NDArray[np.bool_]:
        """Return which octets each tile stores, [tiles, padded K / 8]."""
        nbytes = self._fixed(rows, columns)["octets"]
        words = check_buffer(packed, "octets", np.uint16, nbytes)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)
        width = padded_columns(columns) // 8
        kept = bits[: tiles(rows) * width].reshape(tiles(rows), width)
        if np.count_nonzero(bits) != np.count_nonzero(kept[:, : -(-columns // 8)]):
            raise CorruptPack(f"{self.name}: a block outside of {packed.shape} is kept")
        return kept

    def _check_buffers(self, packed: PackedTensor, rows: int, columns: int) -> None:
        expected = _offsets(self._kept(packed, rows, columns))
        nbytes = self._fixed(rows, columns)["offsets"]
        stored = check_buffer(packed, "offsets", np.uint32, nbytes).view(np.uint32)
        if not np.array_equal(stored[: len(expected)], expected) or stored[len(expected) :].any():
            raise CorruptPack(f"{self.name}: 'offsets' does not follow from 'octets'")
        check_buffer(packed, "codes", np.uint8, int(expected[-1]))

    def _unpack_matrix(
        self, packed: PackedTensor, rows: int, columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        kept = self._kept(packed, rows, columns)
        stored = packed.require("codes", np.uint8).view(np.uint8).reshape(-1, CELL)
        cells = np.zeros((*kept.shape, 2, CELL), np.uint8)
        cells[kept] = np.stack([stored & np.uint8(15), stored >> np.uint8(4)], axis=1)
        matrix = from_cells(cells.reshape(len(kept), 2 * kept.shape[1], CELL), rows, columns)
        if np.count_nonzero(matrix) != np.count_nonzero(cells):
            raise CorruptPack(f"{self.name}: a code outside of {packed.shape} is not zero")
        keep = np.repeat(np.repeat(kept, TILE_ROWS, axis=0), 8, axis=1)
        return matrix, keep[:rows, :columns].copy()


def _offsets(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return where each tile begins and the last one ends, in bytes."""
    lengths = CELL * kept.sum(axis=1, dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


BLOCK16X8 = Block16x8()
