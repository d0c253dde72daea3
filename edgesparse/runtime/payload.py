"""What stands in the place of a packed parameter: its bytes, or its mask, codes and numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.formats.operand import open_matrix
from edgesparse.packed import ASYMMETRIC, TABLE, Codes, PackedTensor
from edgesparse.runtime.arguments import packed_arguments
from edgesparse.runtime.ops import decode


class DecodedSlot:
    """Room for one decoded weight, shared by all payloads of a module.

    A module may read its weight several times in one pass: without the slot each reading
    would decode the whole weight again; with a slot for each payload the model would silently
    become dense.
    """

    def __init__(self) -> None:
        self._name = ""
        self._weight: Tensor | None = None

    def get(self, name: str, packed: PackedTensor) -> Tensor:
        """Return ``packed`` decoded to float32, from the slot if it is the last one asked for."""
        if self._weight is None or self._name != name:
            self._weight = None  # before decoding, so that two are never held
            self._weight, self._name = decode(open_matrix(packed)).reshape(packed.shape), name
        return self._weight


class PackedPayload(nn.Module):
    """A packed weight that computes from its bytes.

    Args:
        name: Name of the tensor.
        packed: The bytes, shared.
        slot: Where a reader of the whole weight finds it decoded.
        dtype: Type of weights and results.
    """

    def __init__(
        self, name: str, packed: PackedTensor, slot: DecodedSlot, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.name, self.packed, self.slot, self.dtype = name, packed, slot, dtype
        # Not registered as buffers: casting the module must not touch packed bytes.
        self._arguments = packed_arguments(packed)

    def weight(self) -> Tensor:
        """Return the whole weight, decoded."""
        return self.slot.get(self.name, self.packed).to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``, x of shape (..., K)."""
        own = self._arguments
        product: Tensor = torch.ops.edgesparse.linear(
            x, own.buffers, own.format, own.shape, own.group_size, bias
        )
        return product

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices``, shape (*indices.shape, K)."""
        own = self._arguments
        rows: Tensor = torch.ops.edgesparse.embedding(
            indices, own.buffers, own.format, own.shape, own.group_size
        )
        return rows.to(self.dtype)


class ExportablePayload(nn.Module):
    """Mask, codes and scales, zeros or tables as buffers, and the op that makes the weight.

    Args:
        name: Name of the tensor, the op's last argument.
        codes: The solver's choice.
        dtype: Type of the weight the owner sees.
    """

    codes: Tensor
    keep_mask: Tensor
    scales: Tensor
    zeros: Tensor
    table: Tensor

    def __init__(self, name: str, codes: Codes, dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.group_size, self.dtype = name, codes.group_size, dtype
        self.bits, self.scheme, self.table_rows = codes.bits, codes.scheme, codes.table_rows
        values = codes.values.astype(np.float32) if codes.bits == 16 else codes.values
        mask = codes.keep_mask
        # An empty mask says "all kept": a converter then writes no mask at all.
        mask = np.zeros(0, np.bool_) if mask.all() else mask
        self.register_buffer("codes", torch.tensor(values))
        self.register_buffer("keep_mask", torch.tensor(mask))
        if codes.table is None:
            self.register_buffer("scales", torch.tensor(codes.scales.astype(np.float32)))
        else:
            self.register_buffer("table", torch.tensor(codes.table.astype(np.float32)))
        if codes.zeros is not None:
            self.register_buffer("zeros", torch.tensor(codes.zeros))

    def empty(self) -> None:
        """Replace codes and mask by zeros of their shapes that take no memory."""
        for leaf in ("codes", "keep_mask"):
            whole = getattr(self, leaf)
            setattr(self, leaf, torch.zeros((), dtype=whole.dtype).expand(whole.shape))

    def weight(self) -> Tensor:
        """Return the weight, shape as captured."""
        ops = torch.ops.edgesparse
        weight: Tensor
        if self.bits == 16:
            weight = ops.sparse_values(self.codes, self.keep_mask, self.name)
        elif self.scheme == TABLE:
            weight = ops.look_up(self.codes, self.keep_mask, self.table, self.table_rows, self.name)
        elif self.scheme == ASYMMETRIC:
            weight = ops.dequantize_shifted(
                self.codes, self.keep_mask, self.scales, self.zeros, self.group_size, self.name
            )
        else:
            weight = ops.dequantize(
                self.codes, self.keep_mask, self.scales, self.group_size, self.name
            )
        return weight if self.dtype == torch.float32 else weight.to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``, x of shape (..., K)."""
        return functional.linear(x, self.weight(), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices``, shape (*indices.shape, K)."""
        return functional.embedding(indices, self.weight())
