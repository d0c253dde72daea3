"""A packed weight as the arguments of ``edgesparse::linear`` and ``embedding``, and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from edgesparse_kernels.matmul import AnyMatrix
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from edgesparse.errors import CorruptPack
from edgesparse.formats.operand import DTYPES, open_matrix
from edgesparse.packed import FORMATS, SYMMETRIC, FormatSpec, PackedTensor
from edgesparse.pattern import DENSE

_SIGNED = {"uint64": np.int64, "uint32": np.int32}  # torch computes little with unsigned words


@dataclass(frozen=True)
class PackedArguments:
    """The arguments of ``edgesparse::linear`` and ``embedding`` that say which weight.

    Attributes:
        buffers: In the order of the byte map.
        format: Name of the layout and scheme; see the module.
        shape: Shape of the weight.
        group_size: Columns per scale; 0 without scales.
    """

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
    label = _label(packed.spec)
    return PackedArguments(buffers, label, list(packed.shape), packed.spec.group_size)


def _label(spec: FormatSpec) -> str:
    """Return the ``format`` of a spec as the operators take it."""
    rows = f":{spec.table_rows}" if spec.table_rows else ""
    return spec.name if spec.scheme == SYMMETRIC else f"{spec.name}:{spec.scheme}{rows}"


def _spec(label: str, group_size: int) -> FormatSpec:
    """Return the spec of a ``format``; the inverse of ``_label``.

    Raises:
        CorruptPack: Rows per table that are no number.
    """
    name, _, scheme = label.partition(":")
    scheme, _, rows = scheme.partition(":")
    if rows and not rows.isdecimal():
        raise CorruptPack(f"format {label!r}: expected a number of rows after {scheme!r}")
    return FORMATS.get(name).spec(
        group_size=group_size,
        pattern=DENSE,
        scheme=scheme or SYMMETRIC,
        table_rows=int(rows or 0),
    )


# Checking a pack reads all of its mask, so it is done once for each tensor object that holds one.
_opened: WeakIdKeyDictionary = WeakIdKeyDictionary()


def matrix_of(
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
    spec = _spec(name, group_size)
    names = list(FORMATS.get(spec.name).predict_nbytes(spec, tuple(shape)))
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
