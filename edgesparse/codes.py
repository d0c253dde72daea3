"""``Codes``: what a solver chose for one weight, before any layout.

A weight of shape ``(N, ...)`` is a matrix of ``N`` rows and ``K`` columns, the product of its other
dimensions. Where ``keep_mask`` is False its value is 0; elsewhere, by the scheme of its numbers,

    symmetric    code · scale                        one scale for ``group_size`` columns of a row
    asymmetric   (code - zero) · scale               one zero beside every scale
    table        table[row // table_rows, code]      one table for ``table_rows`` rows, or for all

and with 16 bits the codes are the float16 values themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import FormatError

INTEGER_BITS = (2, 3, 4, 8)
ALL_BITS = (*INTEGER_BITS, 16)
TABLE_BITS = (2, 3, 4)

SYMMETRIC, ASYMMETRIC, TABLE = "symmetric", "asymmetric", "table"
SCHEMES = (SYMMETRIC, ASYMMETRIC, TABLE)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (rows, columns) of a weight seen as a matrix: first dimension by all the others."""
    return shape[0], math.prod(shape[1:])


def scheme_bits(scheme: str) -> tuple[int, ...]:
    """Return the bits a code of ``scheme`` may have; () for a scheme there is none of."""
    return {SYMMETRIC: ALL_BITS, ASYMMETRIC: INTEGER_BITS, TABLE: TABLE_BITS}.get(scheme, ())


def table_count(rows: int, table_rows: int) -> int:
    """Return how many tables ``rows`` rows have: one for each ``table_rows``, one for all if 0."""
    return -(-rows // table_rows) if table_rows else 1


@dataclass(frozen=True, kw_only=True)
class Codes:
    """What a solver chose for one weight, before any layout.

    Invariants, checked when built: ``values`` is 0 wherever ``keep_mask`` is False; codes and
    zeros lie in ``[-2**(bits-1), 2**(bits-1) - 1]``, indices of a table in ``[0, 2**bits - 1]``;
    scales are finite and positive, entries of a table finite.

    Attributes:
        values: int8 codes or indices, or float16 weights when ``bits`` is 16; shape ``shape``.
        scales: float16, shape ``(N, ceil(K / group_size))``; ``(N, 0)`` with 16 bits or a table.
        keep_mask: bool, shape ``shape``, True = kept.
        bits: 2, 3, 4, 8 or 16; 2, 3 or 4 with a table.
        group_size: Columns per scale; 0 with 16 bits or a table.
        zeros: int8, shape of ``scales``: the code whose value is 0; None unless asymmetric.
        table: float16 ``(T, 2**bits)``, T = ``table_count(N, table_rows)``; None unless a table.
        table_rows: Neighbouring rows that share a table; 0 for one table of the whole weight.
    """

    values: NDArray[np.int8] | NDArray[np.float16]
    scales: NDArray[np.float16]
    keep_mask: NDArray[np.bool_]
    bits: int
    group_size: int
    zeros: NDArray[np.int8] | None = None
    table: NDArray[np.float16] | None = None
    table_rows: int = 0

    def __post_init__(self) -> None:
        if self.zeros is not None and self.table is not None:
            raise FormatError("codes have zeros or a table, not both")
        if self.bits not in scheme_bits(self.scheme):
            raise FormatError(
                f"{self.scheme} codes of {self.bits} bits; expected one of "
                f"{scheme_bits(self.scheme)}"
            )
        self._check_kinds()
        if not np.all(np.isfinite(self.scales)) or np.any(self.scales <= 0):
            raise FormatError("scales must be finite and positive")
        if np.any(self.values[~self.keep_mask]):
            raise FormatError("a removed weight has a code that is not zero")
        self._check_range(self.values, "codes")
        if self.zeros is not None:
            self._check_range(self.zeros, "zeros")
        if self.table is not None and not np.all(np.isfinite(self.table)):
            raise FormatError("the entries of a table must be finite")

    def _check_kinds(self) -> None:
        """Check types and shapes."""
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
        wanted = (table_count(rows, self.table_rows), 1 << self.bits)
        for name, array, kind, shape in (
            ("zeros", self.zeros, np.int8, self.scales.shape),
            ("table", self.table, np.float16, wanted),
        ):
            if array is not None and (array.dtype != kind or array.shape != shape):
                raise FormatError(
                    f"{name} are {array.dtype} {array.shape}, expected {np.dtype(kind)} {shape}"
                )

    def _check_range(self, values: NDArray[np.generic], what: str) -> None:
        """Check that int8 numbers are codes of ``bits`` bits, or indices."""
        if self.bits >= 8 or not values.size:
            return
        lowest = 0 if self.table is not None else -(1 << (self.bits - 1))
        highest = lowest + (1 << self.bits) - 1
        if values.min() < lowest or values.max() > highest:
            raise FormatError(f"{what} exceed {self.bits} bits: expected {lowest}..{highest}")

    @property
    def scheme(self) -> str:
        """``symmetric``, ``asymmetric`` or ``table``."""
        if self.table is not None:
            return TABLE
        return SYMMETRIC if self.zeros is None else ASYMMETRIC

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
        codes = self.values.reshape(rows, columns)
        if self.table is not None:
            row_table = np.arange(rows) // (self.table_rows or max(rows, 1))
            matrix = self.table.astype(np.float32)[row_table[:, None], codes.astype(np.int64)]
        else:
            matrix = codes.astype(np.float32)
            if self.zeros is not None:
                matrix -= self._by_column(self.zeros.astype(np.float32), columns)
            matrix *= self._by_column(self.scales.astype(np.float32), columns)
        if self.scheme != SYMMETRIC:  # where code 0 is not value 0
            matrix[~self.keep_mask.reshape(rows, columns)] = 0
        return matrix.reshape(self.shape)

    def _by_column(self, groups: NDArray[np.float32], columns: int) -> NDArray[np.float32]:
        """Return [N, G] repeated for each column, [N, K]."""
        return np.repeat(groups, self.group_size, axis=1)[:, :columns]
