"""n64: equally many of every 64 columns and where they are, 4-bit codes; byte map in n64.md."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import numpy as np
from edgesparse_kernels.layout import CELL, TILE_ROWS, padded_columns, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.formats.checks import check_buffer
from edgesparse.formats.structured import Structured
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.pattern import Pattern

T = TypeVar("T", bound=np.generic)
WINDOW = 64
_LOW, _HIGH = np.uint8(15), np.uint8(4)


class OfSixtyFour(Structured):
    """At most n weights of every 64 neighbouring columns of a row, n a multiple of 8."""

    name: ClassVar[str] = "n64"
    serves: ClassVar[str] = "n:64 with n a multiple of 8 below 64"

    def suits(self, pattern: Pattern) -> bool:
        """Whether masks of ``pattern`` can be stored."""
        keep, of = pattern.n_of_m or (0, 0)
        return of == WINDOW and keep % 8 == 0 and 0 < keep < WINDOW

    def _predict(self, spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
        keep, _ = spec.pattern.n_of_m or (WINDOW, WINDOW)
        chunks = tiles(rows) * (padded_columns(columns) // WINDOW) * keep // 16
        return {"index": 3 * CELL * chunks, "codes": 2 * CELL * chunks}

    def _buffers(
        self, values: NDArray[np.uint8], keep: NDArray[np.bool_], group_size: int, pattern: Pattern
    ) -> dict[str, NDArray[np.generic]]:
        count, _ = pattern.n_of_m or (0, 0)
        kept = _windows(keep)
        if kept.size and kept.sum(axis=3).max() > count:
            raise FormatError(f"{self.name}: more than {count} of 64 neighbours are kept")
        chosen = np.sort(np.argsort(~kept, axis=3, kind="stable")[..., :count], axis=3)
        codes = np.take_along_axis(_windows(values), chosen, axis=3)
        places, nibbles = _chunks(chosen.astype(np.uint8)), _chunks(codes)
        low, high = places & _LOW, places >> _HIGH
        index = np.stack(
            [
                low[:, 0] | low[:, 1] << _HIGH,
                low[:, 2] | low[:, 3] << _HIGH,
                high[:, 0]
                | high[:, 1] << np.uint8(2)
                | high[:, 2] << _HIGH
                | high[:, 3] << np.uint8(6),
            ],
            axis=1,
        )
        stored = nibbles[:, ::2] | nibbles[:, 1::2] << _HIGH
        return {"index": index.reshape(-1), "codes": np.ascontiguousarray(stored).reshape(-1)}

    def _check_buffers(self, packed: PackedTensor, rows: int, columns: int) -> None:
        keep = self.keep(packed, rows, columns)
        chunks = tiles(rows) * (padded_columns(columns) // WINDOW) * keep // 16
        check_buffer(packed, "index", np.uint8, 3 * CELL * chunks)
        check_buffer(packed, "codes", np.uint8, 2 * CELL * chunks)

    def keep(self, packed: PackedTensor, rows: int, columns: int) -> int:
        """Return n, which the length of ``codes`` says and the pattern must not contradict.

        Raises:
            CorruptPack: It does, or no n gives that length.
        """
        unit = tiles(rows) * (padded_columns(columns) // WINDOW) * CELL
        length = packed.require("codes", np.uint8).nbytes
        if not unit:
            return (packed.spec.pattern.n_of_m or (8, WINDOW))[0]
        eighths, rest = divmod(length, unit)
        promised, _ = packed.spec.pattern.n_of_m or (8 * eighths, WINDOW)
        if rest or not 0 < eighths < 8 or promised != 8 * eighths:
            raise CorruptPack(
                f"{self.name}: the length of 'codes' fits no n of 64 of {packed.spec.pattern}"
            )
        return 8 * eighths

    def _unpack_matrix(
        self, packed: PackedTensor, rows: int, columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        count = self.keep(packed, rows, columns)
        index = packed.require("index", np.uint8).view(np.uint8).reshape(-1, 3, CELL)
        stored = packed.require("codes", np.uint8).view(np.uint8).reshape(-1, 2, CELL)
        nibbles = np.stack([stored & _LOW, stored >> _HIGH], axis=2).reshape(-1, 4, CELL)
        low = np.stack([index[:, :2] & _LOW, index[:, :2] >> _HIGH], axis=2).reshape(-1, 4, CELL)
        high = np.stack([index[:, 2] >> np.uint8(2 * q) & np.uint8(3) for q in range(4)], axis=1)
        shape = (tiles(rows), TILE_ROWS, padded_columns(columns) // WINDOW, count)
        chosen, codes = _unchunk(low | high << _HIGH, shape), _unchunk(nibbles, shape)
        if not np.all(chosen[..., :-1] < chosen[..., 1:]):
            raise CorruptPack(f"{self.name}: the places in a window do not ascend")
        values = np.zeros((*shape[:3], WINDOW), np.uint8)
        keep = np.zeros(values.shape, np.bool_)
        np.put_along_axis(values, chosen.astype(np.intp), codes, axis=3)
        np.put_along_axis(keep, chosen.astype(np.intp), True, axis=3)
        padded = (tiles(rows) * TILE_ROWS, padded_columns(columns))
        matrix = values.reshape(padded)[:rows, :columns]
        if np.count_nonzero(matrix) != np.count_nonzero(values):
            raise CorruptPack(f"{self.name}: a code outside of {packed.shape} is not zero")
        return matrix.copy(), keep.reshape(padded)[:rows, :columns].copy()


def _windows(matrix: NDArray[T]) -> NDArray[T]:
    """Return a matrix padded with zeros as [tiles, 16, windows, 64]."""
    rows, columns = matrix.shape
    padded = np.zeros((tiles(rows) * TILE_ROWS, padded_columns(columns)), matrix.dtype)
    padded[:rows, :columns] = matrix
    return padded.reshape(tiles(rows), TILE_ROWS, padded_columns(columns) // WINDOW, WINDOW)


def _chunks(kept: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return [tiles, 16, windows, n] as chunks of 16 a row, [chunks, 4, 64], lane 4 r + i."""
    count, _, windows, keep = kept.shape
    split = kept.reshape(count, TILE_ROWS, windows * keep // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split).reshape(-1, 4, CELL)


def _unchunk(chunks: NDArray[np.uint8], shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return the inverse of ``_chunks``."""
    count, _, windows, keep = shape
    split = chunks.reshape(count, windows * keep // 4, TILE_ROWS, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split).reshape(shape)


N64 = OfSixtyFour()
