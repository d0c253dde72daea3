"""bitmask: one mask bit a weight and the kept codes only, 16-row tiles; byte map in bitmask.md."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from edgesparse_kernels.layout import CELL, SLACK, TILE_ROWS, aligned, quads, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.formats.checks import (
    check_buffer,
    check_codes,
    check_names,
    check_shape,
    check_spec,
)
from edgesparse.formats.family import Family
from edgesparse.formats.numbers import (
    check_numbers,
    number_buffers,
    number_sizes,
    read_numbers,
    signed,
)
from edgesparse.formats.planes import (
    Plane,
    pack_mask,
    pack_streams,
    planes,
    popcounts,
    tile_offsets,
    unpack_mask,
    unpack_streams,
)
from edgesparse.formats.prediction import expected_codes
from edgesparse.formats.tiles import from_cells, pad_buffer, to_cells
from edgesparse.packed import Codes, FormatSpec, PackedTensor, matrix_shape
from edgesparse.pattern import Pattern

BLOCK = 1 << 22
"""Codes read back at once: more would not be faster and take 20 bytes of memory each."""


class Bitmask(Family):
    """The bitmask layout with codes of ``bits`` bits: 2, 3, 4, 8, or 16 for float16 values."""

    prefix: ClassVar[str] = "bitmask"

    def predict_nbytes(self, spec: FormatSpec, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the expected bytes of each buffer for a random mask of ``spec.pattern``.

        Exact but for ``codes``, whose length is that of the fullest stream of each tile.
        """
        rows, columns = matrix_shape(shape)
        sizes = self._fixed_nbytes(spec, rows, columns)
        for plane in planes(self.bits):
            expected = expected_codes(rows, columns, plane.streams, spec.pattern)
            sizes[f"codes{plane.suffix}"] = aligned(round(expected * plane.code_nbytes)) + SLACK
        return sizes

    def nbytes(self, spec: FormatSpec, keep_mask: NDArray[np.bool_]) -> int:
        """Return the exact bytes of a weight with this mask."""
        rows, columns = matrix_shape(keep_mask.shape)
        sizes = self._fixed_nbytes(spec, rows, columns)
        kept = to_cells(keep_mask.reshape(rows, columns)).sum(axis=2, dtype=np.int64)
        for plane in planes(self.bits):
            sizes[f"codes{plane.suffix}"] = aligned(int(tile_offsets(kept, plane)[-1])) + SLACK
        return sum(sizes.values())

    def pack(self, codes: Codes, *, pattern: Pattern) -> PackedTensor:
        """Lay the codes out.

        Raises:
            FormatError: The codes have another number of bits, or a plane exceeds 4 GiB.
        """
        check_codes(codes, name=self.name, bits=self.bits)
        shape = matrix_shape(codes.shape)
        keep = to_cells(codes.keep_mask.reshape(shape))
        unsigned = codes.values.view(np.uint16 if self.bits == 16 else np.uint8)
        cells = to_cells(unsigned.reshape(shape).astype(np.uint16))
        buffers: dict[str, NDArray[np.generic]] = {"mask": pad_buffer(pack_mask(keep).reshape(-1))}
        for plane in planes(self.bits):
            packed, offsets = pack_streams(cells, keep, plane)
            if offsets[-1] > np.iinfo(np.uint32).max:
                raise FormatError(
                    f"{self.name}: {int(offsets[-1])} bytes of codes in one tensor of shape "
                    f"{codes.shape}; offsets end at 4 GiB, split the tensor"
                )
            buffers[f"offsets{plane.suffix}"] = pad_buffer(offsets.astype(np.uint32))
            buffers[f"codes{plane.suffix}"] = packed
        buffers.update(number_buffers(codes))
        spec = self.spec(
            group_size=codes.group_size,
            pattern=pattern,
            scheme=codes.scheme,
            table_rows=codes.table_rows,
        )
        return PackedTensor(spec=spec, shape=codes.shape, buffers=buffers)

    def check(self, packed: PackedTensor) -> None:
        """Check everything a kernel relies on, once, when a pack is opened.

        After it no kernel can read outside of the buffers, whatever their bytes: the mask says
        how many codes each tile has, and the offsets and lengths agree with it.

        Raises:
            FormatError: Another format or version.
            CorruptPack: The buffers contradict the spec, the shape or each other.
        """
        check_spec(packed.spec, name=self.name, version=self.version, bits=self.bits)
        rows, columns = check_shape(packed)
        expected = self._fixed_nbytes(packed.spec, rows, columns)
        check_names(packed, expected)
        words = check_buffer(packed, "mask", np.uint64, expected["mask"]).view(np.uint64)
        cells = tiles(rows) * quads(columns)
        if words[cells:].any():
            raise CorruptPack(f"{self.name}: mask words after the last tile are not zero")
        kept = popcounts(words[:cells].reshape(tiles(rows), quads(columns)))
        for plane in planes(self.bits):
            self._check_plane(packed, plane, kept, expected[f"offsets{plane.suffix}"])
        check_numbers(packed, rows, columns)

    def unpack(self, packed: PackedTensor) -> Codes:
        """Read the codes back; the inverse of ``pack``.

        Raises:
            CorruptPack: The buffers contradict the spec, the shape or each other, or something
                is stored where nothing belongs.
        """
        self.check(packed)
        rows, columns = matrix_shape(packed.shape)
        words = packed.require("mask", np.uint64).view(np.uint64)
        words = words[: tiles(rows) * quads(columns)].reshape(tiles(rows), quads(columns))
        values = np.empty((rows, columns), np.float16 if self.bits == 16 else np.int8)
        mask = np.empty((rows, columns), np.bool_)
        step = max(1, BLOCK // max(1, quads(columns) * CELL))
        for first in range(0, tiles(rows), step):
            keep = unpack_mask(words[first : first + step])
            part = slice(first * TILE_ROWS, min(rows, (first + step) * TILE_ROWS))
            height = part.stop - part.start
            mask[part] = from_cells(keep, height, columns)
            if np.count_nonzero(mask[part]) != np.count_nonzero(keep):
                raise CorruptPack(f"{self.name}: the mask keeps weights outside of {packed.shape}")
            lanes = np.zeros(keep.shape, np.uint16)
            for plane in planes(self.bits):
                lanes |= self._unpack_plane(packed, plane, keep, first)
            lanes_of_part = from_cells(lanes, height, columns)
            values[part] = self._values(lanes_of_part, mask[part], packed.spec)
        self._check_ends(packed, tiles(rows))
        return Codes(
            values=values.reshape(packed.shape),
            keep_mask=mask.reshape(packed.shape),
            bits=self.bits,
            group_size=packed.spec.group_size,
            **read_numbers(packed, rows, columns),
        )

    def _fixed_nbytes(self, spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
        """Return the buffers in their stored order; 0 for codes, which depend on the mask."""
        sizes = {"mask": aligned(8 * tiles(rows) * quads(columns))}
        for plane in planes(self.bits):
            sizes[f"offsets{plane.suffix}"] = aligned(4 * (tiles(rows) + 1))
            sizes[f"codes{plane.suffix}"] = 0
        return {**sizes, **number_sizes(spec, rows, columns)}

    def _check_plane(
        self, packed: PackedTensor, plane: Plane, kept: NDArray[np.int64], nbytes: int
    ) -> None:
        """Check one plane's offsets and length against the mask's ``kept`` codes by quad."""
        name = f"offsets{plane.suffix}"
        offsets = check_buffer(packed, name, np.uint32, nbytes).view(np.uint32)
        expected = tile_offsets(kept, plane)
        if not np.array_equal(offsets[: len(expected)], expected) or offsets[len(expected) :].any():
            raise CorruptPack(
                f"{self.name}: {name!r} does not follow from the mask of a weight of shape "
                f"{packed.shape}; the file is damaged, compress again"
            )
        length = aligned(int(expected[-1])) + SLACK
        check_buffer(packed, f"codes{plane.suffix}", np.uint8, length)

    def _unpack_plane(
        self, packed: PackedTensor, plane: Plane, keep: NDArray[np.bool_], first: int
    ) -> NDArray[np.uint16]:
        """Return one plane's part of every code of the tiles from ``first`` on, [tiles, quads, 64].

        ``keep`` says how many tiles.
        """
        buffer = packed.require(f"codes{plane.suffix}", np.uint8).view(np.uint8)
        stored = packed.require(f"offsets{plane.suffix}", np.uint32)[first : first + len(keep) + 1]
        offsets = stored.astype(np.int64)
        part = buffer[offsets[0] : offsets[-1]]
        cells, clean = unpack_streams(part, offsets - offsets[0], keep, plane)
        if not clean:
            raise self._unclean()
        return cells

    def _check_ends(self, packed: PackedTensor, count: int) -> None:
        """Check that nothing is stored behind the codes of the last of ``count`` tiles."""
        for plane in planes(self.bits):
            buffer = packed.require(f"codes{plane.suffix}", np.uint8)
            end = int(packed.require(f"offsets{plane.suffix}", np.uint32).view(np.uint32)[count])
            if buffer[end:].any():
                raise self._unclean()

    def _unclean(self) -> CorruptPack:
        return CorruptPack(f"{self.name}: bits that belong to no code are not zero")

    def _values(
        self, lanes: NDArray[np.uint16], mask: NDArray[np.bool_], spec: FormatSpec
    ) -> NDArray[np.int8] | NDArray[np.float16]:
        """Return unsigned codes as int8 codes or float16 values."""
        if self.bits == 16:
            values = lanes.view(np.float16)
            if not np.all(np.isfinite(values)):
                raise CorruptPack(f"{self.name}: a value is not finite")
            return values
        return np.where(mask, signed(lanes.astype(np.uint8), spec), 0).astype(np.int8, copy=False)


BITMASK2, BITMASK3, BITMASK4 = Bitmask(2), Bitmask(3), Bitmask(4)
BITMASK8, BITMASK16 = Bitmask(8), Bitmask(16)
