"""Compressed weights as a package on disk holds them, and whether they are the packed model's.

Reads the program and the weight file itself; what coremltools thinks it wrote is not consulted.
A weight agrees when its mask, every kept code and the scale of every column are the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError
from edgesparse.packed import Codes, PackedTensor, matrix_shape
from edgesparse_converters.coreml import forms
from edgesparse_converters.coreml.operators.call import CallError
from edgesparse_converters.coreml.operators.constants import fill_mask, look_up, spread
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import BlobValue, Operation, operations

METADATA_KEY = "edgesparse"
MAX_CHAIN = 4
SUFFIXES = ("", "_cast_fp16", "_to_fp16")
"""What coremltools appends to the name of a value when it narrows it."""

_KEYS = {
    forms.LUT_TO_SPARSE: ("indices_mask", "indices_nonzero_data"),
    forms.SPARSE_SHIFT_SCALE: ("data_mask", "nonzero_data"),
    forms.SPARSE_TO_DENSE: ("mask", "nonzero_data"),
    forms.LUT_TO_DENSE: ("", "indices"),
    forms.SHIFT_SCALE: ("", "data"),
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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a weight read back differs from the packed one.

    Attributes:
        mask: Places kept in one and removed in the other.
        codes: Codes (or values) that differ.
        scales: Columns whose scale differs.
        max_abs: Largest difference of a decoded weight.
    """

    mask: int
    codes: int
    scales: int
    max_abs: float

    @property
    def any(self) -> bool:
        """Whether anything differs, in whatever way."""
        return bool(self.mask or self.codes or self.scales or self.max_abs != 0)


def recorded(package: Package) -> dict[str, Any]:
    """Return what the exporter left in the package about itself; nothing if it is not ours."""
    try:
        record = json.loads(package.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def program_names(package: Package, packed: Mapping[str, PackedTensor]) -> dict[str, str]:
    """Return the name of the value of each packed tensor, as the package's metadata say.

    Raises:
        SourceError: The package was not written from these tensors.
    """
    names = recorded(package).get("weights")
    if not isinstance(names, dict):
        raise SourceError(
            f"{package.path}: edgesparse did not write it; there is nothing to compare it with"
        )
    missing = sorted(set(packed) - set(names))
    if missing:
        raise SourceError(
            f"{package.path}: it was written from another model: it has no {missing[0]}"
        )
    return {name: str(names[name]) for name in packed}


def read_weights(package: Package, function: str | None = None) -> dict[str, Weight]:
    """Return every compressed weight of a function by the name of its value.

    Raises:
        SourceError: The weight file contradicts the program.
    """
    producers = _producers(package, function)
    compressed = [op for op in producers.values() if op.type.startswith("constexpr_")]
    bound = (b for op in compressed for bindings in op.inputs.values() for b in bindings)
    inner = {binding for binding in bound if isinstance(binding, str)}
    last = {op.name: op for op in compressed if not any(o.name in inner for o in op.outputs)}
    return {name: _Reader(package, producers).weight(op) for name, op in last.items()}


def read_weight(package: Package, name: str, function: str | None = None) -> Weight:
    """Return the weight whose value was given ``name`` when it was written.

    Raises:
        SourceError: There is none, or the weight file contradicts the program.
    """
    producers = _producers(package, function)
    return _Reader(package, producers).weight(_named(package, producers, name))


def stored_blobs(package: Package, name: str) -> dict[str, BlobValue]:
    """Return where the weight file holds the ``mask`` and ``data`` of an integer weight.

    What is short enough to stand in the program itself is left out.

    Raises:
        SourceError: There is no such weight.
    """
    producers = _producers(package, None)
    reader = _Reader(package, producers)
    stored = _stored(reader.chain(_named(package, producers, name)))
    keys = zip(("mask", "data"), _KEYS[stored.type], strict=True)
    found = {part: reader.value(stored, key) for part, key in keys if key}
    return {part: value for part, value in found.items() if isinstance(value, BlobValue)}


def _named(package: Package, producers: Mapping[str, Operation], name: str) -> Operation:
    """Return the last operation of the weight ``name``."""
    for suffix in SUFFIXES:
        operation = producers.get(name + suffix)
        if operation is not None and operation.type.startswith((forms.CONST, "constexpr_")):
            return operation
    raise SourceError(f"{package.path}: the program has no weight {name!r}")


def _stored(chain: Iterable[Operation]) -> Operation:
    """Return the operation of a chain that holds the mask and the stored numbers."""
    parts = {operation.type: operation for operation in chain}
    for kind in (forms.LUT_TO_SPARSE, forms.LUT_TO_DENSE, forms.SPARSE_SHIFT_SCALE,
                 forms.SHIFT_SCALE, forms.SPARSE_TO_DENSE):  # fmt: skip
        if kind in parts:
            return parts[kind]
    return parts[forms.CONST]


def _producers(package: Package, function: str | None) -> dict[str, Operation]:
    """Return the operation that computes each value."""
    program = package.program
    block = program.functions[function or program.default].block
    return {named.name: op for op in operations(block) for named in op.outputs}


def compare(weight: Weight, codes: Codes) -> Difference:
    """Return how ``weight`` differs from the solver's choice."""
    if weight.codes.shape != codes.shape:
        count = int(np.prod(codes.shape))
        return Difference(mask=count, codes=count, scales=count, max_abs=np.inf)
    mask = np.ones(codes.shape, np.bool_) if weight.mask is None else weight.mask
    scales = 0
    if weight.scales is not None:
        rows, columns = matrix_shape(codes.shape)
        chosen = np.repeat(codes.scales.astype(np.float32), max(codes.group_size, 1), axis=1)
        scales = int((weight.scales.reshape(rows, columns) != chosen[:, :columns]).sum())
    return Difference(
        mask=int((mask != codes.keep_mask).sum()),
        codes=int((weight.codes != _multiples(codes)).sum()),
        scales=scales,
        max_abs=float(np.abs(weight.decode() - codes.decode()).max(initial=0.0)),
    )


def _multiples(codes: Codes) -> NDArray[np.float32]:
    """Return what scales multiply, 0 where removed; without scales the values themselves."""
    if codes.table is not None:
        return codes.decode()
    values = codes.values.astype(np.float32)
    if codes.zeros is None:
        return values
    columns = matrix_shape(codes.shape)[1]
    zeros = np.repeat(codes.zeros.astype(np.float32), codes.group_size, axis=1)[:, :columns]
    return np.where(codes.keep_mask, values - zeros.reshape(codes.shape), np.float32(0))


class _Reader:
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
        table = parts.get(forms.LUT_TO_SPARSE) or parts.get(forms.LUT_TO_DENSE)
        scaled = parts.get(forms.SPARSE_SHIFT_SCALE) or parts.get(forms.SHIFT_SCALE)
        stored = _stored(parts.values())
        mask_key, data_key = _KEYS[stored.type]
        mask = self._tensor(stored, mask_key) if mask_key else None
        data = self._tensor(stored, data_key)
        codes = data if mask is None else fill_mask(mask, data)
        scales = None if scaled is None else self._tensor(scaled, "scale")
        offset = None
        if scaled is not None and "offset" in scaled.inputs:
            offset = self._tensor(scaled, "offset")
        if table is not None:
            binding = table.inputs["lut"][0]
            early = scaled is not None and binding == scaled.name
            tables = (
                self._tensor(scaled, "data") if early and scaled else self._tensor(table, "lut")
            )
            codes = look_up(codes.long(), tables)
            if early:  # scale and offset are those of the tables, whose last dimensions are theirs
                scales = None if scales is None else scales[..., 0, 0]
                offset = None if offset is None else offset[..., 0, 0]
        if offset is not None:
            codes = codes - spread(offset, codes.shape)
        codes = codes.float() if mask is None else torch.where(mask != 0, codes, 0).float()
        everywhere = None if scales is None else spread(scales, codes.shape)
        return mask, codes, everywhere, self._type(stored, data_key)

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
