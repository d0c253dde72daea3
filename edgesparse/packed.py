"""The values everything hangs on: ``Codes`` (what a solver chose) and ``PackedTensor`` (its bytes).

What codes mean is said in ``edgesparse.codes``; here is how they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesparse.codes import (
    ALL_BITS,
    ASYMMETRIC,
    INTEGER_BITS,
    SCHEMES,
    SYMMETRIC,
    TABLE,
    TABLE_BITS,
    Codes,
    matrix_shape,
    scheme_bits,
    table_count,
)
from edgesparse.errors import CorruptPack, FormatError
from edgesparse.pattern import Pattern
from edgesparse.registry import Registry

__all__ = [
    "ALL_BITS",
    "ASYMMETRIC",
    "FORMATS",
    "INTEGER_BITS",
    "SCHEMES",
    "SYMMETRIC",
    "TABLE",
    "TABLE_BITS",
    "Codes",
    "Format",
    "FormatSpec",
    "PackedTensor",
    "matrix_shape",
    "scheme_bits",
    "table_count",
]


@dataclass(frozen=True, kw_only=True)
class FormatSpec:
    """Everything that fixes a layout except the shape and the numbers.

    Attributes:
        name: Row of the format registry, for example ``bitmask4``.
        version: Version of the byte map; a change of layout is a new version.
        bits: Bits of one stored code: 2, 3, 4, 8, or 16 for float16 values.
        group_size: Columns per scale; the last group of a row may be shorter. 0 with 16 bits or a
            table.
        pattern: What the mask promises.
        scale_dtype: NumPy name of the stored scales, ``float16``; ``none`` where there are none.
        scheme: What a code means: ``symmetric``, ``asymmetric`` or ``table``; see
            ``edgesparse.codes``. Float16 values are symmetric.
        table_rows: Rows that share a table; 0 for one table of the whole weight.
    """

    name: str
    version: int
    bits: int
    group_size: int
    pattern: Pattern
    scale_dtype: str
    scheme: str = SYMMETRIC
    table_rows: int = 0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise FormatError(
                f"{self.name}: unknown scheme {self.scheme!r}; known: {', '.join(SCHEMES)}"
            )
        if self.bits not in scheme_bits(self.scheme):
            raise FormatError(
                f"{self.name}: {self.bits} bits, expected one of {scheme_bits(self.scheme)} for "
                f"{self.scheme} codes"
            )
        if self.has_scales != (self.group_size > 0) or self.group_size < 0:
            raise FormatError(
                f"{self.name}: group_size {self.group_size} with {self.scheme} codes of "
                f"{self.bits} bits; expected columns per scale, or 0 when the values are float16 "
                "or in a table"
            )
        if self.table_rows < 0 or (self.table_rows and self.scheme != TABLE):
            raise FormatError(
                f"{self.name}: table_rows {self.table_rows} with {self.scheme} codes; expected "
                "rows per table, or 0"
            )

    @property
    def has_scales(self) -> bool:
        """Whether there is a scale for every group."""
        return self.bits != 16 and self.scheme != TABLE

    @property
    def title(self) -> str:
        """Name and scheme for people: ``bitmask4``, ``bitmask4 asymmetric``."""
        return self.name if self.scheme == SYMMETRIC else f"{self.name} {self.scheme}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the scheme is left out where it is symmetric."""
        data: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "bits": self.bits,
            "group_size": self.group_size,
            "pattern": self.pattern.to_json(),
            "scale_dtype": self.scale_dtype,
        }
        if self.scheme != SYMMETRIC:
            data["scheme"] = self.scheme
        if self.table_rows:
            data["table_rows"] = self.table_rows
        return data

    def groups(self, columns: int) -> int:
        """Return the number of scales in a row of ``columns`` columns."""
        return -(-columns // self.group_size) if self.group_size else 0


@dataclass(frozen=True, kw_only=True)
class PackedTensor:
    """One weight in its stored layout.

    Attributes:
        spec: The layout.
        shape: Shape of the weight.
        buffers: Named read-only arrays; together they are the stored bytes, each a multiple of
            64 bytes long so that a file of them can be used by memory map.
    """

    spec: FormatSpec
    shape: tuple[int, ...]
    buffers: Mapping[str, NDArray[np.generic]]

    def __post_init__(self) -> None:
        frozen = {}
        for name, buffer in self.buffers.items():
            view = buffer.view()
            view.flags.writeable = False
            frozen[name] = view
        object.__setattr__(self, "buffers", MappingProxyType(frozen))

    def __deepcopy__(self, memo: object) -> PackedTensor:
        """Return itself: nothing in it can change."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @cached_property
    def codes(self) -> Codes:
        """The solver's choice, read back from the bytes.

        Raises:
            CorruptPack: The buffers contradict the spec or the shape.
        """
        return FORMATS.get(self.spec.name).unpack(self)

    def decode(self) -> NDArray[np.float32]:
        """Return the weight as float32, shape ``shape``."""
        return self.codes.decode()

    def require(self, name: str, dtype: type[np.generic]) -> NDArray[np.generic]:
        """Return the buffer ``name``, one-dimensional and of type ``dtype``.

        Raises:
            CorruptPack: It is missing or of another kind.
        """
        buffer = self.buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.ndim != 1:
            found = "nothing" if buffer is None else f"{buffer.dtype} of {buffer.ndim} dimensions"
            raise CorruptPack(
                f"{self.spec.name}: buffer {name!r} should be one-dimensional "
                f"{np.dtype(dtype)}, found {found}; the file is damaged, compress again"
            )
        return buffer


class Format(Protocol):
    """One stored layout; its NumPy ``pack`` and ``unpack`` are the specification.

    ``nbytes`` is exact and needs no weights: for layouts whose size depends on where the mask is
    set, ``predict_nbytes`` gives the expectation for a random mask of the pattern's sparsity.
    """

    name: str
    version: int
    bits: int

    def spec(
        self, *, group_size: int, pattern: Pattern, scheme: str = SYMMETRIC, table_rows: int = 0
    ) -> FormatSpec:
        """Return the spec of this format with these parameters.

        Raises:
            FormatError: This format does not store codes of ``scheme``.
        """

    def predict_nbytes(self, spec: FormatSpec, shape: tuple[int, ...]) -> dict[str, int]:
        """Return the expected bytes of each buffer, in the order they are stored."""

    def nbytes(self, spec: FormatSpec, keep_mask: NDArray[np.bool_]) -> int:
        """Return the exact bytes of a weight with this mask."""

    def pack(self, codes: Codes, *, pattern: Pattern) -> PackedTensor:
        """Lay the codes out.

        Raises:
            FormatError: The codes do not fit this format.
        """

    def check(self, packed: PackedTensor) -> None:
        """Check, without decoding, everything that kernels rely on; fast enough for every load.

        Raises:
            FormatError: A version this program does not read.
            CorruptPack: The buffers contradict the spec, the shape or each other.
        """

    def unpack(self, packed: PackedTensor) -> Codes:
        """Read the codes back; the inverse of ``pack``, checked against damage.

        Raises:
            CorruptPack: The buffers contradict the spec, the shape or each other.
        """


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "dense2": "edgesparse.formats.dense:DENSE2",
        "dense3": "edgesparse.formats.dense:DENSE3",
        "dense4": "edgesparse.formats.dense:DENSE4",
        "dense8": "edgesparse.formats.dense:DENSE8",
        "bitmask2": "edgesparse.formats.bitmask:BITMASK2",
        "bitmask3": "edgesparse.formats.bitmask:BITMASK3",
        "bitmask4": "edgesparse.formats.bitmask:BITMASK4",
        "bitmask8": "edgesparse.formats.bitmask:BITMASK8",
        "bitmask16": "edgesparse.formats.bitmask:BITMASK16",
        "nm4": "edgesparse.formats.nm4:NM4",
        "n64": "edgesparse.formats.n64:N64",
        "column16": "edgesparse.formats.column16:COLUMN16",
        "block16x8": "edgesparse.formats.block16x8:BLOCK16X8",
    },
)
