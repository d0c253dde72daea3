"""From groups of columns to the rectangular blocks that a scale covers in a package.

A scale of Core ML covers a block that divides every axis, the solver's a run of ``group_size``
columns, the last run of a row possibly short. Where runs are not such blocks the scales are
repeated at the largest block that divides them all, for a matrix gcd(K, group_size) columns: the
numbers stay the same, the file grows by the repetition.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import matrix_shape

T = TypeVar("T", bound=np.generic)


def block_scales(scales: NDArray[T], shape: tuple[int, ...], group_size: int) -> NDArray[T]:
    """Return one scale per rectangular block, shape (N, number of blocks along each other axis).

    Args:
        scales: Scales or zeros, shape (N, ceil(K / group_size)).
        shape: Shape of the weight; K is the product of all but the first dimension.
        group_size: Columns per scale, in the row-major order of those dimensions.
    """
    group = group_indices(shape, group_size)
    for axis, block in enumerate(block_shape(shape, group_size)[1:]):
        group = group.take(np.arange(0, group.shape[axis], block), axis=axis)
    return np.ascontiguousarray(scales[:, group.reshape(-1)].reshape(shape[0], *group.shape))


def block_shape(shape: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Return the largest block, along each axis, that no run of ``group_size`` columns cuts.

    Example:
        >>> block_shape((64, 256), 128), block_shape((64, 300), 128)
        ((1, 128), (1, 4))
        >>> block_shape((8, 32, 3, 3), 144)  # 16 channels of 9 taps
        (1, 16, 3, 3)
    """
    group = group_indices(shape, group_size)
    return (1, *(_largest_block(group, axis) for axis in range(group.ndim)))


def group_indices(shape: tuple[int, ...], group_size: int) -> NDArray[np.int64]:
    """Return which scale of a row each of its columns has, in the row's own shape."""
    columns = matrix_shape(shape)[1]
    return (np.arange(columns, dtype=np.int64) // group_size).reshape(shape[1:])


def _largest_block(group: NDArray[np.int64], axis: int) -> int:
    """Return the largest divisor of the axis such that ``group`` is constant in its blocks."""
    size = group.shape[axis]
    moved = np.moveaxis(group, axis, 0).reshape(size, -1)
    changes = np.flatnonzero(np.any(moved[1:] != moved[:-1], axis=1)) + 1
    return math.gcd(size, *changes.tolist())
