"""Kept weights that rounding made zero: their codes need not be stored.

A mask bit and no code says the same as a mask bit and a code of value 0. So they leave the mask
where masks are free, with no other structure, and where that makes the tensor smaller.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import FORMATS, SYMMETRIC, Codes, FormatSpec


def without_zeros(codes: Codes, spec: FormatSpec) -> tuple[Codes, int]:
    """Return codes whose mask keeps only what is not 0, and how many left it.

    The decoded weight is the same. Unchanged, with 0, where the mask has a structure to keep, the
    layout has no mask, or nothing is saved.

    Args:
        codes: The solver's choice, any shape.
        spec: How it will be stored.
    """
    pattern = spec.pattern
    is_free = pattern.n_of_m is None and pattern.block == (1, 1) and not pattern.is_dense
    if not is_free or codes.bits == 16 or not spec.name.startswith("bitmask"):
        return codes, 0
    keep_mask = codes.keep_mask & _nonzero(codes)
    dropped = int(np.count_nonzero(codes.keep_mask)) - int(np.count_nonzero(keep_mask))
    layout = FORMATS.get(spec.name)
    if not dropped or layout.nbytes(spec, keep_mask) >= layout.nbytes(spec, codes.keep_mask):
        return codes, 0
    values = codes.values.copy()
    values[~keep_mask] = 0
    return replace(codes, values=values, keep_mask=keep_mask), dropped


def _nonzero(codes: Codes) -> NDArray[np.bool_]:
    values = codes.values if codes.scheme == SYMMETRIC else codes.decode()
    return np.asarray(values != 0)
