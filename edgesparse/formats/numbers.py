"""What is stored beside the codes so that they mean numbers: scales, zeros, tables.

    symmetric    scales
    asymmetric   scales, zeros
    table        table

Their bytes are described in bitmask.md; float16 values have none of them.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from edgesparse_kernels.layout import TILE_ROWS, aligned, tiles
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.formats.checks import check_buffer, check_scales
from edgesparse.formats.tiles import pad_buffer, tile_scales, untile_scales
from edgesparse.packed import (
    ASYMMETRIC,
    SYMMETRIC,
    TABLE,
    Codes,
    FormatSpec,
    PackedTensor,
    matrix_shape,
    table_count,
)


class Numbers(TypedDict):
    """The fields of ``Codes`` that are stored beside the codes."""

    scales: NDArray[np.float16]
    zeros: NDArray[np.int8] | None
    table: NDArray[np.float16] | None
    table_rows: int


def number_sizes(spec: FormatSpec, rows: int, columns: int) -> dict[str, int]:
    """Return the bytes of each buffer, in stored order."""
    if spec.scheme == TABLE:
        return {"table": aligned(2 * table_count(rows, spec.table_rows) << spec.bits)}
    if not spec.has_scales:
        return {}
    count = tiles(rows) * TILE_ROWS * spec.groups(columns)
    sizes = {"scales": aligned(2 * count)}
    return {**sizes, "zeros": aligned(count)} if spec.scheme == ASYMMETRIC else sizes


def number_buffers(codes: Codes) -> dict[str, NDArray[np.generic]]:
    """Return the buffers of ``codes``, in stored order."""
    if codes.table is not None:
        return {"table": pad_buffer(codes.table.reshape(-1))}
    if codes.bits == 16:
        return {}
    buffers: dict[str, NDArray[np.generic]] = {"scales": tile_scales(codes.scales)}
    if codes.zeros is not None:
        buffers["zeros"] = tile_scales(codes.zeros)
    return buffers


def check_numbers(packed: PackedTensor, rows: int, columns: int) -> None:
    """Check the buffers beside the codes: lengths, ranges, padding.

    Raises:
        CorruptPack: A scale that is not finite and positive, a zero that is no code, an entry of
            a table that is not finite, padding that is not zero.
    """
    spec = packed.spec
    if spec.scheme == TABLE:
        _check_table(packed, number_sizes(spec, rows, columns)["table"], rows)
        return
    if spec.has_scales:
        check_scales(packed, rows, spec.groups(columns), tiles(rows))
    if spec.scheme == ASYMMETRIC:
        _check_zeros(packed, number_sizes(spec, rows, columns)["zeros"], rows, columns)


def read_numbers(packed: PackedTensor, rows: int, columns: int) -> Numbers:
    """Return what ``number_buffers`` stored, from buffers that were checked."""
    spec, groups = packed.spec, packed.spec.groups(columns)
    numbers = Numbers(
        scales=np.zeros((rows, groups), np.float16),
        zeros=None,
        table=None,
        table_rows=spec.table_rows,
    )
    if spec.scheme == TABLE:
        shape = (table_count(rows, spec.table_rows), 1 << spec.bits)
        stored = packed.require("table", np.float16).view(np.float16)
        numbers["table"] = stored[: shape[0] * shape[1]].reshape(shape).copy()
    if spec.has_scales:
        stored = packed.require("scales", np.float16).view(np.float16)
        numbers["scales"] = untile_scales(stored, rows, groups)
    if spec.scheme == ASYMMETRIC:
        numbers["zeros"] = untile_scales(
            packed.require("zeros", np.int8).view(np.int8), rows, groups
        )
    return numbers


def signed(codes: NDArray[np.uint8], spec: FormatSpec) -> NDArray[np.int8]:
    """Return stored codes as the numbers they are: two's complement, or indices of a table."""
    if spec.scheme == TABLE:
        return codes.view(np.int8)
    sign = np.uint8(1 << (spec.bits - 1))
    return ((codes ^ sign) - sign).view(np.int8)


def with_zeros(codes: Codes, name: str) -> NDArray[np.generic]:
    """Return ``codes.values`` with a code of value 0 for every removed weight.

    Raises:
        FormatError: A weight is removed and its table has no entry 0.
    """
    if codes.scheme == SYMMETRIC or codes.keep_mask.all():
        return codes.values
    rows, columns = matrix_shape(codes.shape)
    removed = ~codes.keep_mask.reshape(rows, columns)
    values = codes.values.reshape(rows, columns).copy()
    if codes.zeros is not None:
        values[removed] = np.repeat(codes.zeros, codes.group_size, axis=1)[:, :columns][removed]
        return values
    assert codes.table is not None
    row_table = np.arange(rows) // (codes.table_rows or rows)
    has_zero = (codes.table == 0).any(axis=1)[row_table]
    if not has_zero[removed.any(axis=1)].all():
        raise FormatError(
            f"{name}: a weight is removed, but its table has no entry 0; use bitmask{codes.bits}"
        )
    index = (codes.table == 0).argmax(axis=1).astype(np.int8)[row_table]
    values[removed] = np.broadcast_to(index[:, None], values.shape)[removed]
    return values


def _check_zeros(packed: PackedTensor, nbytes: int, rows: int, columns: int) -> None:
    """Check that zeros are codes, and 0 in rows of padding."""
    stored = check_buffer(packed, "zeros", np.int8, nbytes).view(np.int8)
    limit = 1 << (packed.spec.bits - 1)
    zeros = untile_scales(stored, rows, packed.spec.groups(columns))
    in_range = not zeros.size or (zeros.min() >= -limit and zeros.max() < limit)
    if not in_range or np.count_nonzero(zeros) != np.count_nonzero(stored):
        raise CorruptPack(
            f"{packed.spec.name}: a zero is no code of {packed.spec.bits} bits, or padding is not "
            "zero; the file is damaged, compress again"
        )


def _check_table(packed: PackedTensor, nbytes: int, rows: int) -> None:
    """Check that the entries of the tables are finite, and what comes after them is 0."""
    stored = check_buffer(packed, "table", np.float16, nbytes).view(np.float16)
    used = table_count(rows, packed.spec.table_rows) << packed.spec.bits
    if not np.all(np.isfinite(stored[:used])) or stored[used:].view(np.uint16).any():
        raise CorruptPack(
            f"{packed.spec.name}: an entry of a table is not finite, or padding is not zero; the "
            "file is damaged, compress again"
        )
