"""Compressed constants: the ``constexpr_`` operations, from their definitions.

Independent of coremltools, and of the code that writes them: a block is found by repeating scales
and tables along every axis until they have the shape of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesparse_converters.coreml.operators.call import Call, CallError, Operator


def shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Return ``scale * (data - offset)``, scale and offset covering equal blocks of the data."""
    shifted = data.float() if offset is None else data.float() - spread(offset, data.shape)
    return spread(scale, data.shape) * shifted


def look_up(indices: Tensor, tables: Tensor) -> Tensor:
    """Return the table entry of each index, tables covering equal blocks of the indices.

    Args:
        indices: Shape S.
        tables: As many dimensions as S, then (entries, 1).
    """
    if tables.ndim != indices.ndim + 2 or tables.shape[-1] != 1:
        raise CallError(f"tables of shape {tuple(tables.shape)}, expected one number an entry")
    flat, entries = tables.reshape(-1), tables.shape[-2]
    if indices.numel() and int(indices.max()) >= entries:
        raise CallError(f"index {int(indices.max())} into tables of {entries} entries")
    count = tables.numel() // max(entries, 1)
    which = torch.arange(count).reshape(tables.shape[:-2])
    return flat[spread(which, indices.shape) * entries + indices]


def spread(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Repeat one number per block until there is one per element."""
    if blocks.ndim != len(shape):
        raise CallError(f"blocks of shape {tuple(blocks.shape)} for data of shape {tuple(shape)}")
    for axis, size in enumerate(shape):
        have = blocks.shape[axis]
        if have == 0 or size % have:
            raise CallError(f"{have} blocks along an axis of {size}")
        if 1 < have < size:
            blocks = blocks.repeat_interleave(size // have, axis)
    return blocks.expand(shape)


def fill_mask(mask: Tensor, kept: Tensor) -> Tensor:
    """Return a tensor of the mask's shape with the kept numbers where it is set, else 0."""
    chosen = mask != 0
    if kept.ndim != 1 or int(chosen.sum()) != kept.numel():
        raise CallError(f"{kept.numel()} kept numbers for {int(chosen.sum())} bits of the mask")
    dense = torch.zeros(mask.shape, dtype=kept.dtype)
    dense[chosen] = kept
    return dense


def constexpr_blockwise_shift_scale(call: Call) -> Tensor:
    """Return dense codes times their scales."""
    return shift_scale(call.tensor("data"), call.tensor("scale"), call.optional("offset"))


def constexpr_lut_to_dense(call: Call) -> Tensor:
    """Return the table entries of dense indices."""
    return look_up(call.index("indices"), call.tensor("lut"))


def constexpr_sparse_to_dense(call: Call) -> Tensor:
    """Return kept numbers at their places."""
    return fill_mask(call.tensor("mask"), call.tensor("nonzero_data"))


def constexpr_lut_to_sparse(call: Call) -> tuple[Tensor, Tensor]:
    """Return the mask and the table entries of kept indices."""
    mask = call.tensor("indices_mask")
    indices = fill_mask(mask, call.index("indices_nonzero_data"))
    return mask, look_up(indices, call.tensor("lut"))[mask != 0]


def constexpr_sparse_blockwise_shift_scale(call: Call) -> tuple[Tensor, Tensor]:
    """Return the mask and kept codes times their scales."""
    mask = call.tensor("data_mask")
    data = fill_mask(mask, call.tensor("nonzero_data"))
    dense = shift_scale(data, call.tensor("scale"), call.optional("offset"))
    return mask, dense[mask != 0]


def constexpr_cast(call: Call) -> Tensor:
    """Return a constant in another width."""
    return call.tensor("source_val")


OPERATORS: dict[str, Operator] = {
    function.__name__: function
    for function in (
        constexpr_blockwise_shift_scale, constexpr_lut_to_dense, constexpr_sparse_to_dense,
        constexpr_lut_to_sparse, constexpr_sparse_blockwise_shift_scale, constexpr_cast,
    )
}  # fmt: skip
