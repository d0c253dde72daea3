"""From a packed tensor to what the kernels take; nothing is copied."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import LAYOUTS, StructuredMatrix

from edgesparse.packed import FORMATS, PackedTensor, matrix_shape

DTYPES: dict[str, type[np.generic]] = {
    "mask": np.uint64,
    "offsets": np.uint32,
    "codes": np.uint8,
    "offsets_high": np.uint32,
    "codes_high": np.uint8,
    "scales": np.float16,
    "zeros": np.int8,
    "table": np.float16,
    "index": np.uint8,
    "columns": np.uint64,
    "octets": np.uint16,
}
"""Stored type of every buffer by name."""


def open_matrix(packed: PackedTensor) -> PackedMatrix | StructuredMatrix:
    """Check ``packed`` and return it as a matrix for the kernels, on the same memory.

    Raises:
        FormatError: A version this program does not read.
        CorruptPack: Buffers that contradict the spec, the shape or each other.
    """
    FORMATS.get(packed.spec.name).check(packed)
    rows, columns = matrix_shape(packed.shape)
    arrays = dict(packed.buffers)
    for name in ("scales", "table"):
        if name in arrays:
            arrays[name] = arrays[name].view(np.uint16)  # numba knows no float16
    if packed.spec.name in LAYOUTS:
        for name in ("columns", "octets"):  # both are bitmaps of what is kept
            if name in arrays:
                arrays["kept"] = arrays.pop(name).view(np.uint8)
        return StructuredMatrix(
            layout=packed.spec.name,
            rows=rows,
            columns=columns,
            group_size=packed.spec.group_size,
            **cast(dict[str, Any], arrays),
        )
    return PackedMatrix(
        rows=rows,
        columns=columns,
        bits=packed.spec.bits,
        group_size=packed.spec.group_size,
        table_rows=packed.spec.table_rows,
        **cast(dict[str, Any], arrays),
    )
