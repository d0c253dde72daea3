"""Compressed constants: the ``constexpr_`` operations, from their definitions.

Those of iOS 16 and 17 have a parameter ``shape``, and masks and indices as rows of bytes.
Independent of coremltools, and of the code that writes them: a block is found by repeating scales
and tables along every axis until they have the shape of the data.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from edgesparse_converters.coreml import blob
from edgesparse_converters.coreml.operators.call import Call, CallError, Operator, within_limits

OLD_BITS = (1, 2, 4, 6, 8)
"""Bits of an index before iOS 18."""


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


def unpacked(packed: Tensor, entries: int, shape: list[int]) -> Tensor:
    """Return numbers below ``entries`` from a row of bytes, the lowest bits first.

    Raises:
        CallError: A shape that the bytes do not fill, or more or fewer entries than bits have.
    """
    within_limits(shape)
    count, bits = math.prod(shape), entries.bit_length() - 1
    if entries != 1 << bits or bits not in OLD_BITS:
        raise CallError(f"a table of {entries} entries, expected one of 2, 4, 16, 64 or 256")
    if packed.ndim != 1 or packed.numel() != -(-count * bits // 8):
        raise CallError(f"{packed.numel()} bytes for {count} numbers of {bits} bits")
    data = memoryview(packed.to(torch.uint8).contiguous().numpy().tobytes())
    found = blob.unpack(data, f"uint{bits}", count)
    return torch.from_numpy(found.astype(np.int64)).reshape(shape)


def old_table(lut: Tensor, dimensions: int) -> Tensor:
    """Return the one table of iOS 16 as a table for all of an array of so many dimensions."""
    return lut.reshape(*(1,) * dimensions, -1, 1)


def along_axis(numbers: Tensor, axis: int, dimensions: int) -> Tensor:
    """Return one number, or one for each place along an axis, as blocks of an array."""
    if numbers.ndim > 1 or not -dimensions <= axis < dimensions:
        raise CallError(f"numbers of shape {tuple(numbers.shape)} along axis {axis}")
    shape = [1] * dimensions
    shape[axis] = numbers.numel()
    return numbers.reshape(shape)


def constexpr_affine_dequantize(call: Call) -> Tensor:
    """Return codes times the scales along one axis, zeros subtracted."""
    data, axis = call.tensor("quantized_data"), call.integer("axis")
    scale = along_axis(call.tensor("scale"), axis, data.ndim)
    return shift_scale(data, scale, along_axis(call.tensor("zero_point"), axis, data.ndim))


def constexpr_blockwise_shift_scale(call: Call) -> Tensor:
    """Return dense codes times their scales."""
    return shift_scale(call.tensor("data"), call.tensor("scale"), call.optional("offset"))


def constexpr_lut_to_dense(call: Call) -> Tensor:
    """Return the table entries of dense indices."""
    if "shape" in call:
        lut, shape = call.tensor("lut"), call.integers("shape")
        return look_up(
            unpacked(call.tensor("indices"), lut.numel(), shape), old_table(lut, len(shape))
        )
    return look_up(call.index("indices"), call.tensor("lut"))


def constexpr_sparse_to_dense(call: Call) -> Tensor:
    """Return kept numbers at their places."""
    mask = call.tensor("mask")
    if "shape" in call:
        mask = unpacked(mask, 2, call.integers("shape"))
    return fill_mask(mask, call.tensor("nonzero_data"))


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
        constexpr_affine_dequantize, constexpr_blockwise_shift_scale, constexpr_lut_to_dense,
        constexpr_sparse_to_dense, constexpr_lut_to_sparse, constexpr_cast,
        constexpr_sparse_blockwise_shift_scale,
    )
}  # fmt: skip
