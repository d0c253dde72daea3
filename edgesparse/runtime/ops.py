"""The torch operators ``edgesparse::*``, importable for their effect of being defined.

    dequantize          codes, mask, scales -> weight          a converter finds these constants
    dequantize_shifted  codes, mask, scales, zeros -> weight   in a graph
    look_up             indices, mask, tables -> weight
    sparse_values       float values, mask -> weight
    linear              computes from the packed bytes with the numba kernels
    embedding           likewise, rows by index

The eager implementations of the first four are the reference decoding. All of them trace through
``torch.export``; none has a gradient.

The argument ``format`` of the last two is the layout's name, followed by the scheme where that is
not symmetric: ``bitmask4``, ``bitmask4:asymmetric``, ``dense3:table:64`` (64 rows to a table).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.matmul import AnyMatrix
from torch import Tensor
from torch.nn import functional

from edgesparse.packed import matrix_shape
from edgesparse.runtime.arguments import matrix_of

DECODE_ABOVE_ROWS = 16
"""Batches of more rows decode the weight once and leave the product to torch."""


def linear(x: Tensor, matrix: AnyMatrix, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for x of shape (..., K), in the type of x.

    The sums are float32, in another order than torch's; the weights are the decoded ones exactly.
    """
    rows = x.reshape(-1, matrix.columns).to(torch.float32)
    if len(rows) > DECODE_ABOVE_ROWS:
        product = functional.linear(rows, decode(matrix))
    else:
        product = torch.empty(len(rows), matrix.rows)
        kernels.matmul(rows.detach().contiguous().numpy(), matrix, out=product.numpy())
    if bias is not None:
        product += bias
    return product.reshape(*x.shape[:-1], matrix.rows).to(x.dtype)


def embedding(indices: Tensor, matrix: AnyMatrix) -> Tensor:
    """Return the rows ``indices`` as float32, shape (*indices.shape, K).

    Raises:
        IndexError: An index is outside of the weight.
    """
    flat = indices.reshape(-1).to(torch.int64).contiguous()
    rows = torch.empty(len(flat), matrix.columns)
    kernels.embedding(flat.numpy(), matrix, out=rows.numpy())
    return rows.reshape(*indices.shape, matrix.columns)


def decode(matrix: AnyMatrix) -> Tensor:
    """Return the weights, float32 [N, K]."""
    weights = torch.empty(matrix.rows, matrix.columns)
    kernels.decode(matrix, out=weights.numpy())
    return weights


@torch.library.custom_op("edgesparse::dequantize", mutates_args=())
def _dequantize(
    codes: Tensor, keep_mask: Tensor, scales: Tensor, group_size: int, name: str
) -> Tensor:
    """Return the weight ``codes * scales`` where kept, else 0; an empty mask keeps all.

    Args:
        codes: int8, shape of the weight.
        keep_mask: bool of the same shape, or without elements.
        scales: float32 [N, ceil(K / group_size)].
        group_size: Columns per scale.
        name: Name of the weight, for whoever reads the graph.
    """
    rows, columns = matrix_shape(tuple(codes.shape))
    by_column = scales.repeat_interleave(group_size, dim=1)[:, :columns]
    weight = (codes.reshape(rows, columns) * by_column).reshape(codes.shape)
    return torch.where(keep_mask, weight, 0.0) if keep_mask.numel() else weight


@_dequantize.register_fake
def _dequantize_shape(
    codes: Tensor, keep_mask: Tensor, scales: Tensor, group_size: int, name: str
) -> Tensor:
    return codes.new_empty(codes.shape, dtype=torch.float32)


@torch.library.custom_op("edgesparse::dequantize_shifted", mutates_args=())
def _dequantize_shifted(
    codes: Tensor, keep_mask: Tensor, scales: Tensor, zeros: Tensor, group_size: int, name: str
) -> Tensor:
    """Return the weight ``(codes - zeros) * scales`` where kept, else 0.

    Args:
        codes: int8, shape of the weight.
        keep_mask: bool of the same shape, or without elements: all kept.
        scales: float32 [N, ceil(K / group_size)].
        zeros: int8 of that shape.
        group_size: Columns per scale and zero.
        name: Name of the weight, for whoever reads the graph.
    """
    rows, columns = matrix_shape(tuple(codes.shape))
    by_column = scales.repeat_interleave(group_size, dim=1)[:, :columns]
    shift = zeros.float().repeat_interleave(group_size, dim=1)[:, :columns]
    weight = ((codes.reshape(rows, columns) - shift) * by_column).reshape(codes.shape)
    return torch.where(keep_mask, weight, 0.0) if keep_mask.numel() else weight


@_dequantize_shifted.register_fake
def _dequantize_shifted_shape(
    codes: Tensor, keep_mask: Tensor, scales: Tensor, zeros: Tensor, group_size: int, name: str
) -> Tensor:
    return codes.new_empty(codes.shape, dtype=torch.float32)


@torch.library.custom_op("edgesparse::look_up", mutates_args=())
def _look_up(
    indices: Tensor, keep_mask: Tensor, table: Tensor, table_rows: int, name: str
) -> Tensor:
    """Return the weight ``table[row // table_rows, index]`` where kept, else 0.

    Args:
        indices: int8, shape of the weight.
        keep_mask: bool of the same shape, or without elements: all kept.
        table: float32 [tables, entries].
        table_rows: Rows that share a table; 0 for one table of all.
        name: Name of the weight, for whoever reads the graph.
    """
    rows, columns = matrix_shape(tuple(indices.shape))
    which = torch.arange(rows, device=table.device) // (table_rows or max(rows, 1))
    weight = table[which].gather(1, indices.reshape(rows, columns).long()).reshape(indices.shape)
    return torch.where(keep_mask, weight, 0.0) if keep_mask.numel() else weight


@_look_up.register_fake
def _look_up_shape(
    indices: Tensor, keep_mask: Tensor, table: Tensor, table_rows: int, name: str
) -> Tensor:
    return indices.new_empty(indices.shape, dtype=torch.float32)


@torch.library.custom_op("edgesparse::sparse_values", mutates_args=())
def _sparse_values(values: Tensor, keep_mask: Tensor, name: str) -> Tensor:
    """Return float32 ``values`` where kept, else 0; an empty mask keeps all."""
    return torch.where(keep_mask, values, 0.0) if keep_mask.numel() else values.clone()


@_sparse_values.register_fake
def _sparse_values_shape(values: Tensor, keep_mask: Tensor, name: str) -> Tensor:
    return torch.empty_like(values)


@torch.library.custom_op("edgesparse::linear", mutates_args=())
def _linear(
    x: Tensor,
    buffers: Sequence[Tensor],
    format: str,  # noqa: A002 - the operator's argument, as graphs show it
    shape: Sequence[int],
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias`` computed from packed buffers; see ``linear``."""
    return linear(x, matrix_of(buffers, format, shape, group_size), bias)


@_linear.register_fake
def _linear_shape(
    x: Tensor,
    buffers: Sequence[Tensor],
    format: str,  # noqa: A002
    shape: Sequence[int],
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


@torch.library.custom_op("edgesparse::embedding", mutates_args=())
def _embedding(
    indices: Tensor,
    buffers: Sequence[Tensor],
    format: str,  # noqa: A002
    shape: Sequence[int],
    group_size: int,
) -> Tensor:
    """Return rows of a packed weight as float32; see ``embedding``."""
    return embedding(indices, matrix_of(buffers, format, shape, group_size))


@_embedding.register_fake
def _embedding_shape(
    indices: Tensor,
    buffers: Sequence[Tensor],
    format: str,  # noqa: A002
    shape: Sequence[int],
    group_size: int,
) -> Tensor:
    columns = matrix_shape(tuple(shape))[1]
    return indices.new_empty((*indices.shape, columns), dtype=torch.float32)
