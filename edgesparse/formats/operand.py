"""From a packed tensor to what the kernels take; nothing is copied."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from edgesparse_kernels.matrix import PackedMatrix

from edgesparse.packed import FORMATS, PackedTensor, matrix_shape

DTYPES: dict[str, type[np.generic]] = {
    "mask": np.uint64,
    "offsets": np.uint32,
    "codes": np.uint8,
    "offsets_high": np.uint32,
    "codes_high": np.uint8,
    "scales": np.float16,
}
"""Stored type of every buffer by name."""


def open_matrix(packed: PackedTensor) -> PackedMatrix:
    """Check ``packed`` and return it as a matrix for the kernels, on the same memory.

    Raises:
        FormatError: A version this program does not read.
        CorruptPack: Buffers that contradict the spec, the shape or each other.
    """
    FORMATS.get(packed.spec.name).check(packed)
    rows, columns = matrix_shape(packed.shape)
    arrays = dict(packed.buffers)
    if "scales" in arrays:
        arrays["scales"] = arrays["scales"].view(np.uint16)  # numba knows no float16
    return PackedMatrix(
        rows=rows,
        columns=columns,
        bits=packed.spec.bits,
        group_size=packed.spec.group_size,
        **cast(dict[str, Any], arrays),
    )
