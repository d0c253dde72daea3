"""dense: every code stored, 16-row tiles, no mask; byte map in dense.md.

A removed weight is stored as the code whose value is 0 and read back as a kept one: this layout is
chosen when a mask would cost more bytes than it saves.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from edgesparse_kernels.layout import CELL, aligned, quads, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack
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
    with_zeros,
)
from edgesparse.formats.planes import Plane, planes
from edgesparse.formats.tiles import from_cells, pad_buffer, to_cells
from edgesparse.packed import Codes, FormatSpec, PackedTensor, matrix_shape
from edgesparse.pattern import Pattern


class Dense(Family):
    """The dense layout with codes of ``bits`` bits: 2, 3, 4 or 8."""

    prefix: ClassVar[str] = "dense"

    def predict_nbytes(self, spec: FormatSpec, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the bytes of each buffer; exact, they depend on the shape alone."""
        rows, columns = matrix_shape(shape)
        cells = tiles(rows) * quads(columns)
        sizes = {
            f"codes{plane.suffix}": aligned(cells * CELL // plane.streams)
            for plane in planes(self.bits)
        }
        return {**sizes, **number_sizes(spec, rows, columns)}

    def nbytes(self, spec: FormatSpec, keep_mask: NDArray[np.bool_]) -> int:
        """Return the exact bytes of a weight with this mask."""
        return sum(self.predict_nbytes(spec, keep_mask.shape).values())

    def pack(self, codes: Codes, *, pattern: Pattern) -> PackedTensor:
        """Lay the codes out.

        Raises:
            FormatError: The codes have another number of bits, or a weight is removed and no code
                has the value 0.
        """
        check_codes(codes, name=self.name, bits=self.bits)
        matrix = with_zeros(codes, self.name).view(np.uint8).reshape(matrix_shape(codes.shape))
        cells = to_cells(matrix)
        buffers: dict[str, NDArray[np.generic]] = {
            f"codes{plane.suffix}": pad_buffer(_pack_plane(cells, plane))
            for plane in planes(self.bits)
        }
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

        Raises:
            FormatError: Another format or version.
            CorruptPack: The buffers contradict the spec or the shape.
        """
        check_spec(packed.spec, name=self.name, version=self.version, bits=self.bits)
        rows, columns = check_shape(packed)
        expected = self.predict_nbytes(packed.spec, packed.shape)
        check_names(packed, expected)
        for plane in planes(self.bits):
            name = f"codes{plane.suffix}"
            check_buffer(packed, name, np.uint8, expected[name])
        check_numbers(packed, rows, columns)

    def unpack(self, packed: PackedTensor) -> Codes:
        """Read the codes back; every weight is kept.

        Raises:
            CorruptPack: The buffers contradict the spec or the shape, or padding is not zero.
        """
        self.check(packed)
        rows, columns = matrix_shape(packed.shape)
        cells = np.zeros((tiles(rows), quads(columns), CELL), np.uint8)
        for plane in planes(self.bits):
            buffer = packed.require(f"codes{plane.suffix}", np.uint8).view(np.uint8)
            used = cells.size // plane.streams
            if buffer[used:].any():
                raise CorruptPack(f"{self.name}: bytes after the last tile are not zero")
            cells |= _unpack_plane(
                buffer[:used].reshape(len(cells), cells.shape[1] // plane.streams, CELL), plane
            )
        values = from_cells(cells, rows, columns)
        if np.count_nonzero(cells) != np.count_nonzero(values):
            raise CorruptPack(f"{self.name}: a code outside of {packed.shape} is not zero")
        return Codes(
            values=signed(values, packed.spec).reshape(packed.shape),
            keep_mask=np.ones(packed.shape, np.bool_),
            bits=self.bits,
            group_size=packed.spec.group_size,
            **read_numbers(packed, rows, columns),
        )


def _pack_plane(cells: NDArray[np.uint8], plane: Plane) -> NDArray[np.uint8]:
    """Return one plane of ``cells`` [tiles, quads, 64], flat."""
    split = cells.reshape(len(cells), cells.shape[1] // plane.streams, plane.streams, CELL)
    low_bits = np.uint8((1 << plane.width) - 1)
    packed = np.zeros((split.shape[0], split.shape[1], CELL), np.uint8)
    for j in range(plane.streams):
        packed |= ((split[:, :, j] >> np.uint8(plane.shift)) & low_bits) << np.uint8(
            plane.width * j
        )
    return packed.reshape(-1)


def _unpack_plane(packed: NDArray[np.uint8], plane: Plane) -> NDArray[np.uint8]:
    """Return the plane's part of every code; the inverse of ``_pack_plane``."""
    low_bits = np.uint8((1 << plane.width) - 1)
    shifts = np.arange(plane.streams, dtype=np.uint8) * np.uint8(plane.width)
    split = ((packed[:, :, None] >> shifts[:, None]) & low_bits) << np.uint8(plane.shift)
    return split.reshape(len(packed), packed.shape[1] * plane.streams, CELL)


DENSE2, DENSE3, DENSE4, DENSE8 = Dense(2), Dense(3), Dense(4), Dense(8)
