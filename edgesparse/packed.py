"""The values everything hangs on: ``Codes`` (what a solver chose) and ``PackedTensor`` (its bytes).

A weight of shape ``(N, ...)`` is a matrix of ``N`` rows and ``K`` columns, the product of its other
dimensions. With ``bits <= 8`` its value is ``codes * scales`` where ``keep_mask`` is True, else 0;
with ``bits == 16`` the codes are the float16 values themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.pattern import Pattern
from edgesparse.registry import Registry

INTEGER_BITS = (2, 3, 4, 8)
ALL_BITS = (*INTEGER_BITS, 16)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a weight seen as a matrix: first dimension by all the others."""
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True, kw_only=True)
class FormatSpec:
    """Everything that fixes a layout except the shape and the numbers.

    Attributes:
        name: Row of the format registry, for example ``bitmask4``.
        version: Version of the byte map; a change of layout is a new version.
        bits: Bits of one stored code: 2, 3, 4, 8, or 16 for float16 values.
        group_size: Columns per scale; the last group of a row may be shorter. 0 with 16 bits.
        pattern: What the mask promises.
        scale_dtype: NumPy name of the stored scales, ``float16``; ``none`` with 16 bits.
    """

    name: str
    version: int
    bits: int
    group_size: int
    pattern: Pattern
    scale_dtype: str

    def __post_init__(self) -> None:
        if self.bits not in ALL_BITS:
            raise FormatError(f"{self.name}: {self.bits} bits, expected one of {ALL_BITS}")
        if (self.bits == 16) != (self.group_size == 0) or self.group_size < 0:
            raise FormatError(
                f"{self.name}: group_size {self.group_size} with {self.bits} bits; expected "
                "columns per scale, or 0 when the values are float16"
            )

    def groups(self, columns: int) -> int:
        """Return the number of scales in a row of ``columns`` columns."""
        return -(-columns // self.group_size) if self.group_size else 0


@dataclass(frozen=True, kw_only=True)
class Codes:
    """What a solver chose for one weight, before any layout.

    Invariants, checked when built: ``values`` is 0 wherever ``keep_mask`` is False; codes lie in
    ``[-2**(bits-1), 2**(bits-1) - 1]``; scales are finite and positive.

    Attributes:
        values: int8 codes, or float16 weights when ``bits`` is 16; shape ``shape``.
        scales: float16, shape ``(N, ceil(K / group_size))``; shape ``(N, 0)`` when bits is 16.
        keep_mask: bool, shape ``shape``, True = kept.
        bits: 2, 3, 4, 8 or 16.
        group_size: Columns per scale; 0 when bits is 16.
    """

    values: NDArray[np.int8] | NDArray[np.float16]
    scales: NDArray[np.float16]
    keep_mask: NDArray[np.bool_]
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        rows, columns = matrix_shape(self.values.shape)
        groups = -(-columns // self.group_size) if self.group_size else 0
        expected = np.float16 if self.bits == 16 else np.int8
        if self.values.dtype != expected or self.scales.dtype != np.float16:
            raise FormatError(
                f"codes of {self.bits} bits have dtype {self.values.dtype} and scales "
                f"{self.scales.dtype}; expected {np.dtype(expected)} and float16"
            )
        if self.scales.shape != (rows, groups) or self.keep_mask.shape != self.values.shape:
            raise FormatError(
                f"codes of shape {self.values.shape} with scales {self.scales.shape} and mask "
                f"{self.keep_mask.shape}; expected scales {(rows, groups)} and a mask like the "
                "codes"
            )
        if not np.all(np.isfinite(self.scales)) or np.any(self.scales <= 0):
            raise FormatError("scales must be finite and positive")
        if np.any(self.values[~self.keep_mask]):
            raise FormatError("a removed weight has a code that is not zero")
        if self.bits < 8 and self.values.size:
            limit = 1 << (self.bits - 1)
            if self.values.min() < -limit or self.values.max() >= limit:
                raise FormatError(f"codes exceed {self.bits} bits: expected -{limit}..{limit - 1}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.values.shape

    @property
    def sparsity(self) -> float:
        """Fraction of weights removed by the mask."""
        return 1 - float(self.keep_mask.mean()) if self.keep_mask.size else 0.0

    def decode(self) -> NDArray[np.float32]:
        """Return the weight as float32, shape ``shape``: the reference every path must equal."""
        if self.bits == 16:
            return self.values.astype(np.float32)
        rows, columns = matrix_shape(self.shape)
        column_scales = np.repeat(self.scales.astype(np.float32), self.group_size, axis=1)
        matrix = self.values.reshape(rows, columns).astype(np.float32)
        return (matrix * column_scales[:, :columns]).reshape(self.shape)


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

    def spec(self, *, group_size: int, pattern: Pattern) -> FormatSpec:
        """Return the spec of this format with these parameters."""

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
