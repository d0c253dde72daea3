"""nm4: two of every four columns and where they are, 4-bit codes; byte map in nm4.md."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from edgesparse_kernels.layout import CELL, QUAD, TILE_ROWS, quads, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.formats.checks import check_buffer
from edgesparse.formats.structured import Structured
from edgesparse.formats.tiles import from_cells, to_cells
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.pattern import Pattern


class TwoOfFour(Structured):
    """At most two weights of every four neighbouring columns of a row."""

    name: ClassVar[str] = "nm4"
    serves: ClassVar[str] = "2:4 or 1:4"

    def suits(self, pattern: Pattern) -> bool:
        """Whether masks of ``pattern`` can be stored."""
        return pattern.n_of_m in ((2, 4), (1, 4))

    def _predict(self, spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
        octets = tiles(rows) * quads(columns) // 2
        return {"index": octets // 4 * CELL, "codes": octets // 2 * CELL}

    def _buffers(
        self, values: NDArray[np.uint8], keep: NDArray[np.bool_], group_size: int, pattern: Pattern
    ) -> dict[str, NDArray[np.generic]]:
        kept = to_cells(keep).reshape(-1, QUAD)
        if kept.size and kept.sum(axis=1).max() > 2:
            raise FormatError(f"{self.name}: more than two of four neighbours are kept")
        chosen = np.sort(np.argsort(~kept, axis=1, kind="stable")[:, :2], axis=1)
        codes = np.take_along_axis(to_cells(values).reshape(-1, QUAD), chosen, axis=1)
        places, nibbles = _octets(chosen.astype(np.uint8)), _octets(codes)
        index = np.zeros((len(places) // 4, CELL), np.uint8)
        for k in range(4):
            index |= places[k::4] << np.uint8(2 * k)
        return {
            "index": index.reshape(-1),
            "codes": (nibbles[::2] | nibbles[1::2] << np.uint8(4)).reshape(-1),
        }

    def _check_buffers(self, packed: PackedTensor, rows: int, columns: int) -> None:
        for name, nbytes in self._predict(packed.spec, rows, columns).items():
            check_buffer(packed, name, np.uint8, nbytes)

    def _unpack_matrix(
        self, packed: PackedTensor, rows: int, columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        index = packed.require("index", np.uint8).view(np.uint8).reshape(-1, CELL)
        stored = packed.require("codes", np.uint8).view(np.uint8).reshape(-1, CELL)
        places = np.stack([index >> np.uint8(2 * k) & np.uint8(3) for k in range(4)], axis=1)
        nibbles = np.stack([stored & np.uint8(15), stored >> np.uint8(4)], axis=1)
        chosen, codes = _pairs(places.reshape(-1, CELL)), _pairs(nibbles.reshape(-1, CELL))
        if not np.all(chosen[:, 0] < chosen[:, 1]):
            raise CorruptPack(f"{self.name}: the places in a quad do not ascend")
        values = np.zeros((len(chosen), QUAD), np.uint8)
        keep = np.zeros((len(chosen), QUAD), np.bool_)
        np.put_along_axis(values, chosen.astype(np.intp), codes, axis=1)
        np.put_along_axis(keep, chosen.astype(np.intp), True, axis=1)
        shape = (tiles(rows), quads(columns), CELL)
        matrix = from_cells(values.reshape(shape), rows, columns)
        if np.count_nonzero(matrix) != np.count_nonzero(values):
            raise CorruptPack(f"{self.name}: a code outside of {packed.shape} is not zero")
        return matrix, from_cells(keep.reshape(shape), rows, columns)


def _octets(pairs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pairs by (cell, row) as octets [octets, 64]: lane 4 r + 2 (quad in octet) + place."""
    split = pairs.reshape(-1, 2, TILE_ROWS, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split).reshape(-1, CELL)


def _pairs(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the inverse of ``_octets``."""
    split = octets.reshape(-1, TILE_ROWS, 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split).reshape(-1, 2)


NM4 = TwoOfFour()
