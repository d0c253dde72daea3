"""Activations as digits: what int8 and 16-bit products are made of, in NumPy.

    int8    x is close to scale * high,             |high| <= 127
    int16   x is close to scale * (256 high + low), -128 <= low <= 127

One scale for every group of the weight's columns. The integers, and the order in which floats are
made of them, are the same in every implementation: numba, C++, this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels import reference
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix

_SMALLEST = np.float32(1.17549435e-38)  # of the normal floats: its reciprocal is still finite


class Activations(Enum):
    """How activations enter a product; the value is the C interface's number."""

    FLOAT32 = 0
    INT8 = 1
    INT16 = 2

    @property
    def planes(self) -> int:
        """Planes of digits; 0 for float32."""
        return self.value

    @property
    def range(self) -> float:
        """What the largest magnitude of a group becomes."""
        return 32512.0 if self is Activations.INT16 else 127.0


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Quantized activations.

    Attributes:
        planes: int32 [planes, M, K], high digits first.
        scales: float32 [M, G]; NaN where a group has a value that is not finite.
    """

    planes: NDArray[np.int32]
    scales: NDArray[np.float32]


def supports(matrix: PackedMatrix | StructuredMatrix, activations: Activations) -> bool:
    """Whether integer sums work: integer codes, and groups of whole quads or one a row."""
    if activations is Activations.FLOAT32:
        return True
    whole = matrix.group_size % 4 == 0 or matrix.group_size >= matrix.columns
    has_table = isinstance(matrix, PackedMatrix) and matrix.has_table
    return (
        matrix.bits != 16
        and not has_table
        and whole
        and min(matrix.group_size, matrix.columns) <= 65_408
    )


def quantize(x: NDArray[np.float32], group_size: int, activations: Activations) -> Digits:
    """Return x [M, K] as digits, rounded to nearest, ties to even."""
    count, columns = x.shape
    begins = np.arange(0, columns, max(1, min(group_size, columns)))
    planes = np.zeros((activations.planes, count, columns), np.int32)
    scales = np.zeros((count, len(begins)), np.float32)
    for group, begin in enumerate(begins):
        part = x[:, begin : begin + group_size]
        top = np.abs(part).max(axis=1)
        finite = np.asarray(np.isfinite(part).all(axis=1))
        scale: NDArray[np.float32] = np.where(finite, top, 0).astype(np.float32)
        scale = scale / np.float32(activations.range)
        zero = np.asarray(scale < _SMALLEST)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=~zero)
        scaled = np.where(
            zero.reshape(-1, 1), np.float32(0), np.where(finite.reshape(-1, 1), part, 0)
        )
        values = np.rint(scaled * inverse[:, None]).astype(np.int32)
        scales[:, group] = np.where(finite, np.where(zero, np.float32(0), scale), np.nan)
        at = slice(begin, begin + part.shape[1])
        if activations is Activations.INT16:
            planes[0, :, at] = (values + 128) >> 8
            planes[1, :, at] = values - 256 * planes[0, :, at]
        else:
            planes[0, :, at] = values
    return Digits(planes=planes, scales=scales)


def matmul(
    x: NDArray[np.float32], matrix: PackedMatrix | StructuredMatrix, activations: Activations
) -> NDArray[np.float32]:
    """Return ``x @ weights.T`` with integer activations, float32 [M, N]: the kernels' very bits."""
    digits = quantize(x, matrix.group_size, activations)
    codes = reference.decode_codes(matrix)
    scales = reference.row_scales(matrix)
    out = np.zeros((len(x), matrix.rows), np.float32)
    for group in range(matrix.groups):
        at = slice(group * matrix.group_size, (group + 1) * matrix.group_size)
        totals = (digits.planes[:, :, at] @ codes[:, at].T).astype(np.float32)
        total = totals[0] if len(totals) == 1 else totals[0] * np.float32(256) + totals[1]
        out += total * (scales[:, group] * digits.scales[:, group, None])
    return out
