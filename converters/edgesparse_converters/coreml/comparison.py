"""Whether a weight read back from a package is the solver's, number by number.

A weight agrees when its mask, every kept code and the scale of every column are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import Codes, matrix_shape
from edgesparse_converters.coreml.chains import Weight


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a weight read back differs from the packed one.

    Attributes:
        mask: Places kept in one and removed in the other.
        codes: Codes (or values) that differ.
        scales: Columns whose scale differs.
        max_abs: Largest difference of a decoded weight.
    """

    mask: int
    codes: int
    scales: int
    max_abs: float

    @property
    def any(self) -> bool:
        """Whether anything differs, in whatever way."""
        return bool(self.mask or self.codes or self.scales or self.max_abs != 0)


def compare(weight: Weight, codes: Codes) -> Difference:
    """Return how ``weight`` differs from the solver's choice."""
    if weight.codes.shape != codes.shape:
        count = int(np.prod(codes.shape))
        return Difference(mask=count, codes=count, scales=count, max_abs=np.inf)
    mask = np.ones(codes.shape, np.bool_) if weight.mask is None else weight.mask
    scales = 0
    if weight.scales is not None:
        rows, columns = matrix_shape(codes.shape)
        chosen = np.repeat(codes.scales.astype(np.float32), max(codes.group_size, 1), axis=1)
        scales = int((weight.scales.reshape(rows, columns) != chosen[:, :columns]).sum())
    return Difference(
        mask=int((mask != codes.keep_mask).sum()),
        codes=int((weight.codes != _multiples(codes)).sum()),
        scales=scales,
        max_abs=float(np.abs(weight.decode() - codes.decode()).max(initial=0.0)),
    )


def _multiples(codes: Codes) -> NDArray[np.float32]:
    """Return what scales multiply, 0 where removed; without scales the values themselves."""
    if codes.table is not None:
        return codes.decode()
    values = codes.values.astype(np.float32)
    if codes.zeros is None:
        return values
    columns = matrix_shape(codes.shape)[1]
    zeros = np.repeat(codes.zeros.astype(np.float32), codes.group_size, axis=1)[:, :columns]
    return np.where(codes.keep_mask, values - zeros.reshape(codes.shape), np.float32(0))
