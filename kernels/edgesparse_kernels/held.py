"""What products are computed from: a matrix as it is stored, or the same weights as dense codes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels import _isa, _jit, reference
from edgesparse_kernels.layout import CELL, QUAD, TILE_ROWS, empty, padded_columns, tiles
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix


def is_faster_as_dense(weights: int) -> bool:
    """Whether a bitmask is computed faster as dense codes, of which it is held a copy then.

    AVX2 expands by tables of shuffles, 133 instructions for 128 weights in the inner loop where
    dense codes take 21, at any sparsity: in place it cannot keep up with memory and dense codes
    can. AVX-512 with VBMI2 spreads 64 bytes by a mask in one instruction, and what is read from
    memory is best read as it lies; but in the second-level cache that instruction, which costs the
    same at any sparsity, is what a product waits for, and dense codes are twice as fast there.
    kernels/bench/README.md says how both were measured.

    Args:
        weights: How many are multiplied in turn, the matrix's own among them.
    """
    if _isa.best() not in (_isa.AVX512, _isa.AMX):
        return True
    return weights // 2 <= cache_nbytes(2) // 2  # activations and results need room too


@cache
def cache_nbytes(level: int) -> int:
    """Return the size of a core's cache of a level as Linux tells it, 0 if nobody does."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            found, size = (index / "level").read_text(), (index / "size").read_text().strip()
        except OSError:
            continue
        if int(found) == level and size.endswith("K"):
            return int(size[:-1]) << 10
    return 0


def for_products(
    matrix: PackedMatrix | StructuredMatrix,
    *,
    weights: int | None = None,
    in_place: bool | None = None,
) -> PackedMatrix | StructuredMatrix:
    """Return ``matrix``, or its weights as dense codes where those are computed faster.

    That is a 4-bit bitmask where ``is_faster_as_dense`` says so. Dense codes take 4 bits a weight
    and the scales, whatever the sparsity; ``nbytes`` of what is returned says how much that is.
    They are made anew by every call.

    Args:
        matrix: What was opened.
        weights: How many are multiplied in turn, its own among them: those of a model. By default
            its own are all.
        in_place: True for the least memory: nothing is copied. By default what the environment
            says, ``EDGESPARSE_IN_PLACE=1`` for True.
    """
    if in_place is None:
        in_place = os.environ.get("EDGESPARSE_IN_PLACE", "0") == "1"
    if in_place or not _jit.is_enabled() or isinstance(matrix, StructuredMatrix):
        return matrix
    is_bitmask = matrix.bits == 4 and matrix.is_symmetric and not matrix.is_dense
    if weights is None:
        weights = matrix.rows * matrix.columns
    return as_dense(matrix) if is_bitmask and is_faster_as_dense(weights) else matrix


def as_dense(matrix: PackedMatrix | StructuredMatrix) -> PackedMatrix:
    """Return the same 4-bit weights in the dense layout, in memory only.

    Of a structured mask it is made once and kept beside ``matrix``: processors without the gathers,
    and float32 activations, compute from it.
    """
    known: PackedMatrix | None = matrix.__dict__.get("_dense")
    if known is None:
        known = PackedMatrix(
            rows=matrix.rows,
            columns=matrix.columns,
            bits=4,
            group_size=matrix.group_size,
            codes=_codes(matrix),
            scales=matrix.scales,
        )
        if isinstance(matrix, StructuredMatrix):
            matrix.__dict__["_dense"] = known
    return known


def _codes(matrix: PackedMatrix | StructuredMatrix) -> NDArray[np.uint8]:
    if isinstance(matrix, PackedMatrix) and _jit.is_enabled():
        return _spread(matrix)
    return dense_codes(matrix)


def dense_codes(matrix: PackedMatrix | StructuredMatrix) -> NDArray[np.uint8]:
    """Return the bytes of the dense layout, the plain NumPy version."""
    count, width = tiles(matrix.rows), padded_columns(matrix.columns)
    nibbles = np.zeros((count * TILE_ROWS, width), np.uint8)
    nibbles[: matrix.rows, : matrix.columns] = reference.decode_codes(matrix) & 15
    split = nibbles.reshape(count, TILE_ROWS, width // 8, 2, QUAD).transpose(0, 2, 3, 1, 4)
    codes: NDArray[np.uint8] = (split[:, :, 0] | split[:, :, 1] << np.uint8(4)).reshape(-1)
    return codes


def _spread(matrix: PackedMatrix) -> NDArray[np.uint8]:
    """Return the bytes of the dense layout of a 4-bit bitmask, by the vector kernel."""
    from edgesparse_kernels import dispatch, groups

    numbers = dispatch.operand(matrix)
    codes = empty((tiles(matrix.rows) * numbers.quads * CELL // 2,), np.uint8)
    groups.spread(_isa.best(), numbers, codes)
    return codes
