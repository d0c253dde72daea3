"""One compressed weight: the chain of operations that rebuilds it, back to its constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError
from edgesparse_converters.coreml import forms
from edgesparse_converters.coreml.operators.call import CallError
from edgesparse_converters.coreml.operators.constants import (
    along_axis,
    fill_mask,
    look_up,
    old_table,
    spread,
    unpacked,
)
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import BlobValue, Operation

MAX_CHAIN = 4

KEYS = {
    forms.LUT_TO_SPARSE: ("indices_mask", "indices_nonzero_data"),
    forms.SPARSE_SHIFT_SCALE: ("data_mask", "nonzero_data"),
    forms.SPARSE_TO_DENSE: ("mask", "nonzero_data"),
    forms.LUT_TO_DENSE: ("", "indices"),
    forms.SHIFT_SCALE: ("", "data"),
    forms.AFFINE: ("", "quantized_data"),
    forms.CONST: ("", "val"),
}
"""Names of mask and data in the operation that holds the stored numbers."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One compressed weight, read back.

    Attributes:
        name: Name of the value in the program.
        operations: Chain of operations that rebuild it.
        dtype: Type of the stored codes or values.
        mask: bool, True = kept; None when nothing is removed.
        codes: What the scales multiply, zeros subtracted, or the values themselves; in the shape of
            the weight, 0 where removed.
        scales: Scale of every element; None for values.
        nbytes: Bytes in the weight file.
    """

    name: str
    operations: tuple[str, ...]
    dtype: str
    mask: NDArray[np.bool_] | None
    codes: NDArray[np.float32]
    scales: NDArray[np.float32] | None
    nbytes: int

    def decode(self) -> NDArray[np.float32]:
        """Return the weight as float32."""
        return self.codes if self.scales is None else self.codes * self.scales


def stored_in(chain: Iterable[Operation]) -> Operation:
    """Return the operation of a chain that holds the mask and the stored numbers."""
    parts = {operation.type: operation for operation in chain}
    for kind in (forms.LUT_TO_SPARSE, forms.LUT_TO_DENSE, forms.SPARSE_SHIFT_SCALE,
                 forms.SHIFT_SCALE, forms.SPARSE_TO_DENSE, forms.AFFINE):  # fmt: skip
        if kind in parts:
            return parts[kind]
    return parts[forms.CONST]


class ChainReader:
    """Follows a chain of operations back to its constants."""

    def __init__(self, package: Package, producers: Mapping[str, Operation]) -> None:
        self._package, self._producers = package, producers
        self._nbytes = 0

    def weight(self, last: Operation) -> Weight:
        """Return the weight whose chain ends in ``last``."""
        chain = self.chain(last)
        try:
            mask, codes, scales, dtype = self._parts({op.type: op for op in chain})
        except (CallError, KeyError, IndexError, RuntimeError, TypeError) as error:
            raise SourceError(
                f"{self._package.path.name}: the weight {last.name!r} contradicts itself: {error}"
            ) from None
        return Weight(
            name=last.name,
            operations=tuple(op.type for op in chain),
            dtype=dtype,
            mask=None if mask is None else (mask != 0).numpy(),
            codes=codes.numpy(),
            scales=None if scales is None else scales.numpy(),
            nbytes=self._nbytes,
        )

    def chain(self, last: Operation) -> list[Operation]:
        """Return the operations a weight is rebuilt by, first to last."""
        chain = [last]
        while True:
            names = [b for bindings in chain[0].inputs.values() for b in bindings]
            before = [
                self._producers[b] for b in names if isinstance(b, str) and b in self._producers
            ]
            compressed = [op for op in before if op.type.startswith("constexpr_")]
            if not compressed:
                return chain
            chain.insert(0, compressed[0])
            if len(chain) > MAX_CHAIN:
                raise SourceError(f"{self._package.path.name}: {last.name!r} never ends")

    def _parts(
        self, parts: Mapping[str, Operation]
    ) -> tuple[Tensor | None, Tensor, Tensor | None, str]:
        """Return mask, dense codes, scale of every element, and the stored type."""
        stored = stored_in(parts.values())
        mask, codes = self._stored_numbers(stored)
        table = parts.get(forms.LUT_TO_SPARSE) or parts.get(forms.LUT_TO_DENSE)
        scaled = parts.get(forms.SPARSE_SHIFT_SCALE) or parts.get(forms.SHIFT_SCALE)
        scales, offset = self._scales(scaled or parts.get(forms.AFFINE), codes)
        if table is not None:
            early = scaled is not None and table.inputs["lut"][0] == scaled.name
            tables = self._tensor(scaled, "data") if early and scaled else self._lut(table, codes)
            codes = look_up(codes.long(), tables)
            if early:  # scale and offset are those of the tables, whose last dimensions are theirs
                scales = None if scales is None else scales[..., 0, 0]
                offset = None if offset is None else offset[..., 0, 0]
        if offset is not None:
            codes = codes - spread(offset, codes.shape)
        codes = codes.float() if mask is None else torch.where(mask != 0, codes, 0).float()
        everywhere = None if scales is None else spread(scales, codes.shape)
        return mask, codes, everywhere, self._type(stored, KEYS[stored.type][1])

    def _stored_numbers(self, stored: Operation) -> tuple[Tensor | None, Tensor]:
        """Return the mask, if there is one, and the stored numbers where they belong."""
        mask_key, data_key = KEYS[stored.type]
        data = self._tensor(stored, data_key)
        if "shape" not in stored.inputs:  # from iOS 18 on
            mask = self._tensor(stored, mask_key) if mask_key else None
            return mask, data if mask is None else fill_mask(mask, data)
        shape = self._tensor(stored, "shape").tolist()
        if not mask_key:
            return None, unpacked(data, self._tensor(stored, "lut").numel(), shape)
        mask = unpacked(self._tensor(stored, mask_key), 2, shape)
        return mask, fill_mask(mask, data)

    def _scales(
        self, scaled: Operation | None, codes: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return scales and zeros as blocks of the codes, those there are."""
        if scaled is None:
            return None, None
        if scaled.type == forms.AFFINE:
            axis = int(self._tensor(scaled, "axis"))
            both = (self._tensor(scaled, "scale"), self._tensor(scaled, "zero_point"))
            scale, zero = (along_axis(part, axis, codes.ndim) for part in both)
            return scale, zero
        offset = self._tensor(scaled, "offset") if "offset" in scaled.inputs else None
        return self._tensor(scaled, "scale"), offset

    def _lut(self, table: Operation, codes: Tensor) -> Tensor:
        lut = self._tensor(table, "lut")
        return old_table(lut, codes.ndim) if "shape" in table.inputs else lut

    def _tensor(self, operation: Operation, key: str) -> Tensor:
        value = self.value(operation, key)
        if isinstance(value, BlobValue):
            self._nbytes += self._package.blob_file(value).record(value.offset).nbytes
        array = np.asarray(self._package.constant(value))
        kind = np.float32 if array.dtype.kind == "f" else np.int64
        return torch.from_numpy(array.astype(kind))

    def _type(self, operation: Operation, key: str) -> str:
        value = self.value(operation, key)
        return value.type.dtype if isinstance(value, BlobValue) else str(value.dtype)

    def value(self, operation: Operation, key: str) -> Any:
        """Return the constant an operation's parameter is bound to."""
        if operation.type == forms.CONST:
            return operation.attributes["val"]
        binding = operation.inputs[key][0]
        if not isinstance(binding, str):
            return binding[0]
        return self._producers[binding].attributes["val"]
