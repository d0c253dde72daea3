"""What stands in the place of a packed parameter: its bytes, or its mask, codes and scales."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.packed import Codes, PackedTensor


class DecodedSlot:
    """Room for one decoded weight, shared by all payloads of a module.

    A stack of experts reads its weight once for every expert: without the slot each reading
    would decode the whole stack again; with a slot for each payload the model would silently
    become dense.
    """

    def __init__(self) -> None:
        self._name = ""
        self._weight: Tensor | None = None

    def get(self, name: str, packed: PackedTensor) -> Tensor:
        """Return ``packed`` decoded to float32, from the slot if it is the last one asked for."""
        if self._weight is None or self._name != name:
            self._weight = None  # before decoding, so that two are never held
            self._weight, self._name = torch.from_numpy(packed.decode()), name
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

    def weight(self) -> Tensor:
        """Return the whole weight, decoded."""
        return self.slot.get(self.name, self.packed).to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``, x of shape (..., K)."""
        return functional.linear(x, self.weight(), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices``, shape (*indices.shape, K)."""
        return functional.embedding(indices, self.weight())


class ExportablePayload(nn.Module):
    """Mask, codes and scales as buffers, and the op that makes the weight of them.

    Args:
        name: Name of the tensor, the op's last argument.
        codes: The solver's choice.
        dtype: Type of the weight the owner sees.
    """

    codes: Tensor
    keep_mask: Tensor
    scales: Tensor

    def __init__(self, name: str, codes: Codes, dtype: torch.dtype) -> None:
        super().__init__()
        self.name, self.group_size, self.dtype = name, codes.group_size, dtype
        self.bits = codes.bits
        values = codes.values.astype(np.float32) if codes.bits == 16 else codes.values
        mask = codes.keep_mask
        # An empty mask says "all kept": a converter then writes no mask at all.
        mask = np.zeros(0, np.bool_) if mask.all() else mask
        self.register_buffer("codes", as_tensor(values))
        self.register_buffer("keep_mask", as_tensor(mask))
        self.register_buffer("scales", as_tensor(codes.scales.astype(np.float32)))

    def weight(self) -> Tensor:
        """Return the weight, shape as captured."""
        if self.bits == 16:
            weight: Tensor = torch.ops.edgesparse.sparse_values(
                self.codes, self.keep_mask, self.name
            )
        else:
            weight = torch.ops.edgesparse.dequantize(
                self.codes, self.keep_mask, self.scales, self.group_size, self.name
            )
        return weight if self.dtype == torch.float32 else weight.to(self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``, x of shape (..., K)."""
        return functional.linear(x, self.weight(), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices``, shape (*indices.shape, K)."""
        return functional.embedding(indices, self.weight())


def as_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return a tensor on the same memory; of a read-only array it must not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)
