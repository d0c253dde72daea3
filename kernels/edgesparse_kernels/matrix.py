"""A packed matrix as bare arrays: what every kernel takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels.layout import PLANES, quads, streams, tiles

_ARRAYS = (
    "codes", "scales", "mask", "offsets", "codes_high", "offsets_high", "zeros", "table",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedMatrix:
    """N rows by K columns in the dense or the bitmask layout.

    The arrays are used as they are: read-only and memory-mapped ones too, without a copy. Kernels
    trust them; whoever opens a pack has checked it (``Format.check`` in edgesparse).

    Attributes:
        rows: N.
        columns: K.
        bits: 2, 3, 4, 8, or 16 for float16 values.
        group_size: Columns per scale; 0 with 16 bits or a table.
        codes: Bytes of the first plane, uint8.
        scales: float16 as uint16 words, [tiles, groups, 16]; empty with 16 bits or a table.
        mask: uint64 [tiles, quads]; empty in the dense layout.
        offsets: uint32 [tiles + 1], first byte of each tile; empty in the dense layout.
        codes_high: Bytes of the second plane of 3-bit codes; else empty.
        offsets_high: Its tiles.
        zeros: int8 like the scales, the code whose value is 0; empty where that is code 0.
        table: float16 as uint16 words, [tables, 2**bits], what an index stands for; else empty.
        table_rows: Rows that share a table; 0 for one table of all.
    """

    rows: int
    columns: int
    bits: int
    group_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    mask: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    offsets: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    codes_high: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    offsets_high: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    zeros: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    table: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    table_rows: int = 0

    def __post_init__(self) -> None:
        # Read-only views: numba compiles another kernel for each mixture of writable arrays.
        for name in _ARRAYS:
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def is_dense(self) -> bool:
        """Whether every code is stored."""
        return not self.offsets.size

    @property
    def has_table(self) -> bool:
        """Whether codes are indices of a table."""
        return self.bits != 16 and not self.group_size

    @property
    def is_symmetric(self) -> bool:
        """Whether a code of 0 means 0."""
        return not self.has_table and not self.zeros.size

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.columns // self.group_size) if self.group_size else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    @cached_property
    def tile_nbytes(self) -> tuple[int, ...]:
        """Bytes of a tile of each plane in the dense layout."""
        return tuple(64 * quads(self.columns) // streams(width) for width in PLANES[self.bits])

    def tile_begins(self, plane: int) -> NDArray[np.int64]:
        """Return the first byte of each tile of a plane, int64 [tiles]."""
        count = tiles(self.rows)
        if self.is_dense:
            return np.arange(count, dtype=np.int64) * self.tile_nbytes[plane]
        offsets = self.offsets_high if plane else self.offsets
        return offsets[:count].astype(np.int64)
