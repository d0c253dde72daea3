"""From a weight as the solver chose it to Core AI's operations, on the very same numbers.

``c`` are codes, ``s`` scales, ``i`` indices, ``m`` the mask; ``dense`` puts kept numbers where the
mask is set and 0 elsewhere:

    bits    nothing removed                            with a mask
    8       blockwise_shift_scale(c, s, z)             blockwise_shift_scale(dense(m, c[m]), s)
    4       the same                                   like 2, 3
    2, 3    blockwise_shift_scale(                     blockwise_shift_scale(
              lut_to_dense(i, codes), s, z)              dense(m, lut_to_dense(i[m], codes)), s)
    16      dense(m, w[m]), cast                       the same
    table   lut_to_dense(i, entries)                   dense(m, lut_to_dense(i[m], entries))

A table of codes is one for the whole weight, since it is scaled afterwards. Kept indices are one
row without places, so that several tables need ``lut_to_dense(dense(m, i[m]), entries)``; there,
and where zeros are taken from codes, removed weights would not be 0: the result is multiplied by
``dense(m, 1)``, which takes no bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import Codes
from edgesparse_converters.coreml import blob
from edgesparse_converters.coreml.blocks import block_scales

INTEGERS = {
    "mask": "uint1", "indices": "uint{bits}", "codes": "int{bits}", "zeros": "int{bits}",
    "codes_in_order": "int8",
}  # fmt: skip
"""Types of the constants of a weight that are integers, by what they are."""


class Weight:
    """Builds the operations of one weight while a graph is being written.

    Args:
        codes: The solver's choice.
        name: Under which its constants are stored, ``name.codes``, ``name.scales``, ….
    """

    def __init__(self, codes: Codes, name: str) -> None:
        self._codes, self._name = codes, name
        # Of 16 bits without a mask, the converter would widen the constant rather than cast it.
        whole = codes.keep_mask.all() and codes.bits != 16
        self._mask = None if whole else codes.keep_mask

    def emit(self) -> Any:
        """Return the value that is the whole weight, float32."""
        from coreai._compiler.dialects import coreai
        from coreai._compiler.ir import F32Type

        codes = self._codes
        kept = codes.values if self._mask is None else codes.values[self._mask]
        if codes.bits == 16:
            return coreai.cast(self._dense(self._constant("values", kept)), F32Type.get())
        if codes.table is not None:
            return self._tables(kept, codes.table.astype(np.float32))
        if codes.bits == 8 or (codes.bits == 4 and self._mask is None):
            width, data = codes.bits, self._constant("codes", kept, codes.bits)
        else:
            half = 1 << (codes.bits - 1)
            every = np.arange(-half, half, dtype=np.int8).reshape(*(1,) * kept.ndim, -1, 1)
            width, data = 8, self._look_up(kept + half, self._constant("codes_in_order", every, 8))
        scaled = self._scale(self._dense(data), width)
        return scaled if codes.zeros is None else self._removed(scaled)

    def _scale(self, data: Any, width: int) -> Any:
        from coreai._compiler.dialects import coreai
        from coreai._compiler.ir import IntegerType

        codes = self._codes
        scales = block_scales(codes.scales.astype(np.float32), codes.shape, codes.group_size)
        nothing = np.zeros(scales.shape, np.int8)
        if codes.zeros is None:
            zeros = coreai.constant(nothing, dtype=IntegerType.get_signed(width))
        else:
            shifts = block_scales(codes.zeros, codes.shape, codes.group_size)
            zeros = self._constant("zeros", shifts, width)
        stored = self._constant("scales", scales)
        floor = coreai.constant(nothing.astype(np.float32))
        return coreai.blockwise_shift_scale(data, stored, zeros, floor)

    def _tables(self, kept: NDArray[Any], entries: NDArray[np.float32]) -> Any:
        """Return the entries of the solver's tables, repeated where blocks do not divide rows."""
        from coreai._compiler.dialects import coreai

        rows, each = self._codes.shape[0], self._codes.table_rows
        if each:
            entries = entries[np.arange(0, rows, math.gcd(rows, each)) // each]
        if self._mask is None or len(entries) == 1:
            table = entries.reshape(len(entries), *(1,) * (kept.ndim - 1), -1, 1)
            return self._dense(self._look_up(kept, self._constant("table", table)))
        table = entries.reshape(len(entries), *(1,) * (len(self._codes.shape) - 1), -1, 1)
        indices = self._constant("indices", kept.astype(np.uint8), self._codes.bits)
        stored = self._constant("table", table)
        axis = coreai.constant(np.int16(0))
        return self._removed(coreai.lut_to_dense(self._dense(indices), stored, axis))

    def _removed(self, weight: Any) -> Any:
        """Return the weight with 0 where the mask is not set."""
        from coreai._compiler.dialects import coreai

        if self._mask is None:
            return weight
        ones = coreai.constant(np.ones(int(self._mask.sum()), np.float32))
        return coreai.broadcasting_mul(weight, self._dense(ones))

    def _look_up(self, indices: NDArray[Any], table: Any) -> Any:
        from coreai._compiler.dialects import coreai

        stored = self._constant("indices", indices.astype(np.uint8), self._codes.bits)
        return coreai.lut_to_dense(stored, table, coreai.constant(np.int16(0)))

    def _dense(self, kept: Any) -> Any:
        from coreai._compiler.dialects import coreai

        if self._mask is None:
            return kept
        mask = self._constant("mask", self._mask, 1)
        return coreai.sparse_with_bitmask_to_dense(coreai.build_sparse_with_bitmask(kept, mask))

    def _constant(self, part: str, array: NDArray[Any], bits: int = 0) -> Any:
        """Store an array under the weight's name, integers packed to ``bits``."""
        from coreai._compiler.dialects import coreai
        from coreai._compiler.ir import (
            DenseResourceElementsAttr,
            F16Type,
            F32Type,
            IntegerType,
            RankedTensorType,
        )

        if part in INTEGERS:
            kind = INTEGERS[part].format(bits=bits)
            signed = IntegerType.get_signed if kind[0] == "i" else IntegerType.get_unsigned
            element = signed(bits)
            data = np.frombuffer(blob.pack(array.reshape(-1), kind), np.uint8)
        else:
            element = F16Type.get() if array.dtype == np.float16 else F32Type.get()
            data = np.ascontiguousarray(array)
        attribute = DenseResourceElementsAttr.get_from_buffer(
            data, f"{self._name}.{part}", RankedTensorType.get(list(array.shape), element)
        )
        return coreai.ConstantOp(value=attribute).result
