"""What the layouts for structured masks share: 4-bit codes, a pattern they need, their checks.

Each stores a regular superset of the kept weights; one that is not kept has code 0 and reads back
as a kept 0, so the decoded weight is exact and the mask may grow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from edgesparse_kernels.layout import TILE_ROWS, aligned, tiles
from numpy.typing import NDArray

from edgesparse.errors import FormatError
from edgesparse.formats.checks import (
    check_codes,
    check_names,
    check_scales,
    check_shape,
    check_spec,
)
from edgesparse.formats.tiles import tile_scales, untile_scales
from edgesparse.packed import SYMMETRIC, Codes, FormatSpec, PackedTensor, matrix_shape
from edgesparse.pattern import Pattern


@dataclass(frozen=True)
class Structured(ABC):
    """A 4-bit layout for masks of one shape."""

    version: int = 1
    bits: int = 4
    name: ClassVar[str]
    serves: ClassVar[str]

    @abstractmethod
    def suits(self, pattern: Pattern) -> bool:
        """Whether masks of ``pattern`` can be stored."""

    @abstractmethod
    def _buffers(
        self, values: NDArray[np.uint8], keep: NDArray[np.bool_], group_size: int, pattern: Pattern
    ) -> dict[str, NDArray[np.generic]]:
        """Return all buffers but the scales, for codes [N, K] as nibbles."""

    @abstractmethod
    def _check_buffers(self, packed: PackedTensor, rows: int, columns: int) -> None:
        """Check types and lengths, and that positions and offsets agree."""

    @abstractmethod
    def _unpack_matrix(
        self, packed: PackedTensor, rows: int, columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return nibbles and mask, [N, K]; CorruptPack for what ``pack`` cannot have made."""

    @abstractmethod
    def _predict(self, spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
        """Return the expected bytes of all buffers but the scales."""

    def spec(
        self, *, group_size: int, pattern: Pattern, scheme: str = SYMMETRIC, table_rows: int = 0
    ) -> FormatSpec:
        """Return the spec of this format with these parameters."""
        self._require_symmetric(scheme)
        return FormatSpec(
            name=self.name,
            version=self.version,
            bits=self.bits,
            group_size=group_size,
            pattern=pattern,
            scale_dtype="float16",
        )

    def _require_symmetric(self, scheme: str) -> None:
        if scheme != SYMMETRIC:
            raise FormatError(f"{self.name} stores symmetric codes, not {scheme}; use bitmask4")

    def predict_nbytes(self, spec: FormatSpec, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the expected bytes of each buffer, in the order they are stored."""
        rows, columns = matrix_shape(shape)
        scales = aligned(2 * tiles(rows) * TILE_ROWS * spec.groups(columns))
        return {**self._predict(spec, rows, columns), "scales": scales}

    def nbytes(self, spec: FormatSpec, keep_mask: NDArray[np.bool_]) -> int:
        """Return the exact bytes of a weight with this mask."""
        rows, columns = matrix_shape(keep_mask.shape)
        keep = keep_mask.reshape(rows, columns)
        nibbles = np.zeros((rows, columns), np.uint8)
        buffers = self._buffers(nibbles, keep, spec.group_size, spec.pattern)
        scales = aligned(2 * tiles(rows) * TILE_ROWS * spec.groups(columns))
        return sum(buffer.nbytes for buffer in buffers.values()) + scales

    def pack(self, codes: Codes, *, pattern: Pattern) -> PackedTensor:
        """Lay the codes out.

        Raises:
            FormatError: Other bits, or a mask or pattern this layout is not for.
        """
        self._require_symmetric(codes.scheme)
        check_codes(codes, name=self.name, bits=self.bits)
        if not self.suits(pattern):
            raise FormatError(
                f"{self.name} stores masks of {self.serves}, found {pattern}; use bitmask4"
            )
        shape = matrix_shape(codes.shape)
        nibbles = codes.values.view(np.uint8).reshape(shape) & np.uint8(15)
        keep = codes.keep_mask.reshape(shape)
        buffers = self._buffers(nibbles, keep, codes.group_size, pattern)
        buffers["scales"] = tile_scales(codes.scales)
        spec = self.spec(group_size=codes.group_size, pattern=pattern)
        return PackedTensor(spec=spec, shape=codes.shape, buffers=buffers)

    def check(self, packed: PackedTensor) -> None:
        """Check everything a kernel relies on, once, when a pack is opened.

        Raises:
            FormatError: Another format or version.
            CorruptPack: The buffers contradict the spec, the shape or each other.
        """
        check_spec(packed.spec, name=self.name, version=self.version, bits=self.bits)
        self._require_symmetric(packed.spec.scheme)
        rows, columns = check_shape(packed)
        check_names(packed, self.predict_nbytes(packed.spec, packed.shape))
        self._check_buffers(packed, rows, columns)
        check_scales(packed, rows, packed.spec.groups(columns), tiles(rows))

    def unpack(self, packed: PackedTensor) -> Codes:
        """Read the codes back; weights stored beside the kept ones come back as kept zeros.

        Raises:
            CorruptPack: The buffers contradict the spec, the shape or each other.
        """
        self.check(packed)
        rows, columns = matrix_shape(packed.shape)
        nibbles, keep = self._unpack_matrix(packed, rows, columns)
        values = ((nibbles ^ np.uint8(8)) - np.uint8(8)).view(np.int8)
        stored = packed.require("scales", np.float16).view(np.float16)
        return Codes(
            values=values.reshape(packed.shape),
            scales=untile_scales(stored, rows, packed.spec.groups(columns)),
            keep_mask=keep.reshape(packed.shape),
            bits=self.bits,
            group_size=packed.spec.group_size,
        )
