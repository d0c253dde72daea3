"""From codes, masks, scales and tables to the ``Form`` they are written in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import TABLE, Codes, FormatSpec, matrix_shape
from edgesparse_converters.coreml.blocks import block_scales
from edgesparse_converters.coreml.forms import DEFAULT_CHOICE, Choice, Form, storage

OLD_TABLE_BITS = {1: 1, 2: 2, 3: 4, 4: 4}
"""Bits of an index in systems before iOS 18, which have no tables of 8 entries."""


def form_of(codes: Codes, choice: Choice = DEFAULT_CHOICE) -> Form:
    """Return how a weight as the solver chose it is written."""
    if choice.old:
        return old_form(codes)
    if codes.bits == 16:
        return value_form(codes.values.astype(np.float32), codes.keep_mask)
    assert codes.values.dtype == np.int8
    if codes.table is not None:
        entries = codes.table.astype(np.float32)
        indices = codes.values.view(np.int8)
        return table_form(indices, codes.keep_mask, entries, table_rows=codes.table_rows)
    return code_form(
        codes.values.view(np.int8),
        codes.keep_mask,
        codes.scales.astype(np.float32),
        group_size=codes.group_size,
        bits=codes.bits,
        choice=choice,
        zeros=codes.zeros,
    )


def code_form(
    codes: NDArray[np.int8],
    mask: NDArray[np.bool_] | None,
    scales: NDArray[np.float32],
    *,
    group_size: int,
    bits: int,
    choice: Choice = DEFAULT_CHOICE,
    zeros: NDArray[np.int8] | None = None,
) -> Form:
    """Return how codes with scales are written.

    Args:
        codes: int8, in the shape of the weight.
        mask: True = kept; None, or all True, when nothing is removed.
        scales: float32, shape (N, ceil(K / group_size)).
        group_size: Columns per scale.
        bits: 2, 3, 4 or 8.
        choice: What may be chosen about the package.
        zeros: Zeros of asymmetric codes, shape of ``scales``.
    """
    mask = None if mask is None or mask.all() else mask
    kept = codes if mask is None else codes[mask]
    blocks = block_scales(scales, codes.shape, group_size)
    stored, indexed = storage(bits, kept=kept.size, blocks=blocks.size, choice=choice)
    table = None
    if indexed:
        half = 1 << (bits - 1)
        table = np.arange(-half, half, dtype=np.int8)
        kept = (kept + half).astype(np.uint8)
    return Form(
        bits=stored,
        shape=codes.shape,
        kept=kept,
        mask=mask,
        table=table,
        scales=blocks,
        late_scale=choice.late_scale and indexed,
        zeros=None if zeros is None else block_scales(zeros, codes.shape, group_size),
    )


def table_form(
    indices: NDArray[np.int8],
    mask: NDArray[np.bool_] | None,
    table: NDArray[np.float32],
    *,
    table_rows: int,
) -> Form:
    """Return how indices of the solver's tables are written.

    A package has tables for equal blocks of rows; where ``table_rows`` does not divide the rows,
    tables are repeated for blocks of gcd(N, table_rows).

    Args:
        indices: int8, in the shape of the weight.
        mask: True = kept; None, or all True, when nothing is removed.
        table: float32, shape (tables, entries).
        table_rows: Rows that share a table; 0 for one table of all.
    """
    mask = None if mask is None or mask.all() else mask
    kept = (indices if mask is None else indices[mask]).view(np.uint8)
    rows = indices.shape[0]
    if table_rows:
        table = table[np.arange(0, rows, math.gcd(rows, table_rows)) // table_rows]
    return Form(
        bits=table.shape[1].bit_length() - 1,
        shape=indices.shape,
        kept=kept,
        mask=mask,
        table=None,
        scales=None,
        entries=table.reshape(len(table), *(1,) * (indices.ndim - 1), -1),
    )


def value_form(values: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> Form:
    """Return how float16 values (held as float32) are written."""
    mask = None if mask is None or mask.all() else mask
    kept = values if mask is None else values[mask]
    return Form(bits=16, shape=values.shape, kept=kept, mask=mask, table=None, scales=None)


def has_old_form(spec: FormatSpec, shape: tuple[int, ...]) -> bool:
    """Whether systems before iOS 18 hold such a weight exactly, by a constant of their own."""
    if spec.bits == 16:
        return True
    if not spec.name.startswith("dense"):
        return False
    if spec.scheme == TABLE:
        return not spec.table_rows or spec.table_rows >= shape[0]
    return spec.groups(matrix_shape(shape)[1]) == 1


def old_form(codes: Codes) -> Form:
    """Return how a weight is written for systems before iOS 18.

    What they have no constant for is written as float16 values, behind its mask if it has one.
    """
    mask = None if codes.keep_mask.all() else codes.keep_mask
    if codes.table is not None and len(codes.table) == 1 and mask is None:
        return _old_table(codes)
    if codes.bits != 16 and codes.table is None and mask is None and codes.scales.shape[1] == 1:
        ones = (1,) * (len(codes.shape) - 1)
        scales = codes.scales.astype(np.float32).reshape(-1, *ones)
        return Form(
            bits=8, shape=codes.shape, kept=codes.values.astype(np.int8), mask=None, table=None,
            scales=scales, zeros=None if codes.zeros is None else codes.zeros.reshape(-1, *ones),
            old=True,
        )  # fmt: skip
    values = codes.decode()
    assert np.array_equal(values, values.astype(np.float16)), "refused before"
    return replace(value_form(values, mask), old=True)


def _old_table(codes: Codes) -> Form:
    """Return the form of a table, its entries repeated if there is none of so few."""
    assert codes.table is not None
    bits = OLD_TABLE_BITS[codes.bits]
    entries = np.resize(codes.table.astype(np.float32), (1, 1 << bits))
    form = table_form(codes.values.view(np.int8), None, entries, table_rows=0)
    return replace(form, old=True)
