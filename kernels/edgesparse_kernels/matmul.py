"""Compute from a packed matrix: multiply, decode, look rows up.

With float32 activations the results equal the decoded weights' up to the order of summation; with
int8 or 16-bit activations the integers are exact and the same on every processor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels import _jit, activations, reference
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.held import as_dense
from edgesparse_kernels.layout import quads
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix

if TYPE_CHECKING:
    from edgesparse_kernels.dispatch import Call

AnyMatrix = PackedMatrix | StructuredMatrix

MAX_ROWS = 64  # whose digits and sums are held at once
_FLOAT32 = np.dtype(np.float32)


def matmul(
    x: NDArray[np.float32],
    matrix: AnyMatrix,
    *,
    out: NDArray[np.float32],
    kind: Activations = Activations.FLOAT32,
    threads: int = 1,
) -> None:
    """Write ``x @ weights.T`` into ``out``.

    Args:
        x: float32 [M, K], rows contiguous.
        matrix: N by K.
        out: float32 [M, N], rows contiguous.
        kind: How x enters the product.
        threads: How many threads share the rows of the matrix.

    Raises:
        ValueError: Another type or shape, or integer activations that ``activations.supports``
            says the matrix cannot take.
    """
    _expect(x, (len(x), matrix.columns), "x")
    _expect(out, (len(x), matrix.rows), "out")
    _expect_writeable(out)
    if not _jit.is_enabled():
        _expect_support(matrix, kind)
        out[:] = _reference(x, matrix, kind)
    elif threads == 1:
        _multiply(x, matrix, kind, 1, out)
    else:
        with _jit.workers(threads):
            _multiply(x, matrix, kind, threads, out)


def _multiply(
    x: NDArray[np.float32],
    matrix: AnyMatrix,
    kind: Activations,
    threads: int,
    out: NDArray[np.float32],
) -> None:
    """Multiply by what was made for the last product of this shape; else make it.

    To find the kernel and all it needs takes longer than a small product.
    """
    if len(x) > MAX_ROWS:
        for begin in range(0, len(x), MAX_ROWS):
            some = slice(begin, begin + MAX_ROWS)
            _multiply(x[some], matrix, kind, threads, out[some])
        return
    key = (kind, len(x), threads, get_ident())
    known = matrix.__dict__.get("_product")
    if known is None or known[0] != key:
        _expect_support(matrix, kind)
        known = matrix.__dict__["_product"] = (key, _product(matrix, kind, len(x), threads))
    known[1](x, out)


def _product(matrix: AnyMatrix, kind: Activations, rows: int, threads: int) -> Call:
    """Return the product by the kernels there are for the matrix and this processor."""
    from edgesparse_kernels import dispatch

    if isinstance(matrix, StructuredMatrix):
        # Gathers take row by row what dense codes are multiplied with at once, in the time of some
        # two rows; but those are made, and kept beside the matrix.
        few = rows == 1 or rows * matrix.density <= 1
        if few and kind is not Activations.FLOAT32 and dispatch.can_gather(matrix):
            return dispatch.gathering_product(matrix, kind, threads)
        return _product(as_dense(matrix), kind, rows, threads)
    if has_octets(matrix):
        make = dispatch.product if matrix.is_symmetric else dispatch.product_of_schemes
        return make(matrix, kind, rows, threads)
    if kind is not Activations.FLOAT32:
        return partial(_by_reference, matrix, kind)
    from edgesparse_kernels import generic

    loop = generic.matmul if threads == 1 else generic.matmul_parallel
    return lambda x, out: loop(*_arguments(matrix), x, threads, out)


def matvec(
    x: NDArray[np.float32],
    matrix: AnyMatrix,
    *,
    out: NDArray[np.float32],
    kind: Activations = Activations.FLOAT32,
    threads: int = 1,
) -> None:
    """Write ``weights @ x`` into ``out``, for x float32 [K] and out float32 [N]."""
    matmul(x[None], matrix, out=out[None], kind=kind, threads=threads)


def decode(matrix: AnyMatrix, *, out: NDArray[np.float32], threads: int = 1) -> None:
    """Write the weights into ``out``, float32 [N, K].

    Raises:
        ValueError: ``out`` has another type or shape.
    """
    if isinstance(matrix, StructuredMatrix):
        matrix = as_dense(matrix)
    if _jit.is_enabled() and has_octets(matrix):
        from edgesparse_kernels import dispatch

        _expect(out, (matrix.rows, matrix.columns), "out")
        _expect_writeable(out)
        with _jit.workers(threads):
            dispatch.decode(matrix, threads, out)
        return
    embedding(np.arange(matrix.rows, dtype=np.int64), matrix, out=out, threads=threads)


def embedding(
    indices: NDArray[np.int64],
    matrix: AnyMatrix,
    *,
    out: NDArray[np.float32],
    threads: int = 1,
) -> None:
    """Write the rows ``indices`` into ``out``.

    Args:
        indices: int64 [M], each in [0, N).
        matrix: N by K.
        out: float32 [M, K], rows contiguous.
        threads: How many threads share the rows.

    Raises:
        IndexError: An index is outside of the matrix.
        ValueError: ``out`` has another type or shape.
    """
    _expect(out, (len(indices), matrix.columns), "out")
    _expect_writeable(out)
    if indices.size and (indices.min() < 0 or indices.max() >= matrix.rows):
        raise IndexError(
            f"rows {indices.min()} to {indices.max()} of a matrix that has {matrix.rows}"
        )
    if isinstance(matrix, StructuredMatrix):
        matrix = as_dense(matrix)
    if not _jit.is_enabled():
        out[:] = reference.decode(matrix)[indices]
        return
    rows = np.ascontiguousarray(indices, np.int64)
    key = "_lookup" if threads == 1 else "_lookup_parallel"
    known = matrix.__dict__.get(key)
    if known is None:
        known = matrix.__dict__[key] = _lookup(matrix, threads == 1, rows, out)
    with _jit.workers(threads):
        known(rows, threads, out)


def _lookup(
    matrix: PackedMatrix, serial: bool, indices: NDArray[np.int64], out: NDArray[np.float32]
) -> Callable[..., None]:
    """Return what decodes rows, made once: to look at its arguments takes longer than a row."""
    from edgesparse_kernels import generic

    loop = generic.decode_rows if serial else generic.decode_rows_parallel
    arguments = _arguments(matrix)
    return partial(_jit.entry(loop, *arguments, indices, 1, out), *arguments)


Arguments = tuple[
    tuple[int, int, int, int, int, int, int],
    NDArray[np.uint64],
    NDArray[np.uint8],
    NDArray[np.uint32],
    NDArray[np.uint8],
    NDArray[np.uint32],
    NDArray[np.uint16],
    NDArray[np.int8],
    NDArray[np.uint16],
]


def _arguments(matrix: PackedMatrix) -> Arguments:
    """Return what the loops of ``generic`` take first."""
    geometry = (
        matrix.rows,
        matrix.columns,
        matrix.bits,
        matrix.group_size,
        matrix.groups,
        quads(matrix.columns),
        matrix.table_rows,
    )
    return (
        geometry,
        matrix.mask,
        matrix.codes,
        matrix.offsets,
        matrix.codes_high,
        matrix.offsets_high,
        matrix.scales,
        matrix.zeros,
        matrix.table,
    )


def has_octets(matrix: PackedMatrix) -> bool:
    """Whether vector kernels can take it: integer codes, groups of whole octets."""
    return (
        matrix.bits != 16
        and matrix.columns > 0
        and (matrix.has_table or matrix.group_size % 8 == 0 or matrix.group_size >= matrix.columns)
    )


def _reference(x: NDArray[np.float32], matrix: AnyMatrix, kind: Activations) -> NDArray[np.float32]:
    if kind is Activations.FLOAT32:
        return reference.matmul(x, matrix)
    return activations.matmul(x, matrix, kind)


def _by_reference(
    matrix: PackedMatrix,
    kind: Activations,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    out[:] = _reference(x, matrix, kind)


def _expect_support(matrix: AnyMatrix, kind: Activations) -> None:
    """Raise ValueError if ``matrix`` cannot take activations of this kind."""
    if not activations.supports(matrix, kind):
        raise ValueError(
            f"{kind.name} activations need integer codes and groups of whole quads of columns; "
            f"this matrix has {matrix.bits} bits and groups of {matrix.group_size} (0: float16 "
            "values or a table); use FLOAT32"
        )


def _expect(array: NDArray[np.float32], shape: tuple[int, int], name: str) -> None:
    """Check an array a kernel will index without looking.

    Raises:
        ValueError: It has another type, shape or layout.
    """
    if array.dtype != _FLOAT32 or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}, expected contiguous float32 {shape}"
        )


def _expect_writeable(out: NDArray[np.float32]) -> None:
    """Raise ValueError if results may not be written to ``out``: kernels would not ask."""
    if not out.flags.writeable:
        raise ValueError("out is read-only; give an array to write results to")
