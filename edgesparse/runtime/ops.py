"""The torch operators ``edgesparse::*``, importable for their effect of being defined.

    dequantize      mask, codes, scales -> weight       a converter finds these constants in a graph
    sparse_values   mask, float values  -> weight
    linear          computes from the packed bytes with the numba kernels
    embedding       likewise, rows by index

The eager implementations of the first two are the reference decoding. All of them trace through
``torch.export``; none has a gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.matmul import AnyMatrix
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from edgesparse.errors import CorruptPack
from edgesparse.formats.operand import DTYPES, open_matrix
from edgesparse.packed import FORMATS, PackedTensor, matrix_shape
from edgesparse.pattern import DENSE

DECODE_ABOVE_ROWS = 16
"""Batches of more rows decode the weight once and leave the product to torch."""

_SIGNED = {"uint64": np.int64, "uint32": np.int32}  # torch computes little with unsigned words


@dataclass(frozen=True)
class PackedArguments:
    """The arguments of ``edgesparse::linear`` and ``embedding`` that say which weight."""

    buffers: list[Tensor]
    format: str
    shape: list[int]
    group_size: int


def packed_arguments(packed: PackedTensor) -> PackedArguments:
    """Return what the packed operators take for ``packed``; its memory is shared.

    uint64 and uint32 buffers become int64 and int32 tensors of the same bytes.
    """
    layout = FORMATS.get(packed.spec.name)
    names = layout.predict_nbytes(packed.spec, packed.shape)
    buffers = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        for name in names:
            array = packed.buffers[name]
            buffers.append(torch.from_numpy(array.view(_SIGNED.get(str(array.dtype), array.dtype))))
    return PackedArguments(buffers, layout.name, list(packed.shape), packed.spec.group_size)


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
    return linear(x, _matrix(buffers, format, shape, group_size), bias)


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
    return embedding(indices, _matrix(buffers, format, shape, group_size))


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


# Checking a pack reads all of its mask, so it is done once for each tensor object that holds one.
_opened: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _matrix(
    buffers: Sequence[Tensor], name: str, shape: Sequence[int], group_size: int
) -> AnyMatrix:
    """Return the checked matrix in the operator's arguments.

    Raises:
        CorruptPack: Buffers that contradict the format, the shape or each other.
    """
    key = (name, tuple(shape), group_size, tuple(buffer.data_ptr() for buffer in buffers))
    if buffers and buffers[0] in _opened and _opened[buffers[0]][0] == key:
        known: AnyMatrix = _opened[buffers[0]][1]
        return known
    layout = FORMATS.get(name)
    spec = layout.spec(group_size=group_size, pattern=DENSE)
    names = list(layout.predict_nbytes(spec, tuple(shape)))
    if len(names) != len(buffers):
        raise CorruptPack(f"{name}: {len(buffers)} buffers, expected {', '.join(names)}")
    # Detached: an array holds its tensor, and must not keep the cache's own key alive.
    arrays = {
        buffer_name: buffer.detach().numpy().view(DTYPES[buffer_name])
        for buffer_name, buffer in zip(names, buffers, strict=True)
    }
    packed = PackedTensor(spec=spec, shape=tuple(shape), buffers=arrays)
    matrix = open_matrix(packed)
    _opened[buffers[0]] = (key, matrix)
    return matrix
