"""The weights of a written ``.pte`` against the packed tensors they were made from.

Every form a weight can have in the file is decoded from the file's own bytes and compared with the
packed tensor code for code and scale for scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.exporting import LayerCheck
from edgesparse.packed import Codes, PackedTensor, matrix_shape
from edgesparse_converters.executorch.lowering import Form, Use
from edgesparse_converters.executorch.program import Program
from edgesparse_converters.executorch.xnnpack import filters

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One weight as the file holds it.

    Attributes:
        form: In which form.
        shape: (rows, columns).
        values: Codes as integers, or float32 weights.
        scales: float32 [rows, groups]; [rows, 0] for float32 weights.
    """

    form: Form
    shape: tuple[int, int]
    values: NDArray[Any] = field(repr=False)
    scales: NDArray[np.float32] = field(repr=False)

    def decode(self) -> NDArray[np.float32]:
        """Return the weight as a float32 matrix."""
        values = self.values.astype(np.float32)
        groups = self.scales.shape[1]
        if groups == 0 or values.size == 0:
            return values
        return values * np.repeat(self.scales, -(-self.shape[1] // groups), axis=1)


def read_weights(program: Program, method: str) -> Iterator[Stored]:
    """Yield every weight of a method, in whichever form the file holds it."""
    yield from _delegated(program, method)
    plan = program.methods[method]
    for use in program.kernel_uses(method):
        name = use.operator.partition(".")[0]
        if name in ("quantized_decomposed::embedding_4bit", "quantized_decomposed::embedding_byte"):
            codes, scales = (plan["values"][use.arguments[i]]["val"] for i in (0, 1))
            yield _embedding(program, name, codes, scales)


def check_layers(
    program: Program, method: str, uses: Iterable[Use], packed: Mapping[str, PackedTensor]
) -> tuple[LayerCheck, ...]:
    """Return one check per use, by the name of the parameter there.

    A float32 weight that the compiler folded into something else cannot be found as itself and
    gets no check; the outputs speak for it.
    """
    stored: dict[tuple[Form, tuple[int, int]], list[Stored]] = {}
    for weight in read_weights(program, method):
        stored.setdefault((weight.form, weight.shape), []).append(weight)
    checks = []
    for use in uses:
        codes = packed[use.tensor].codes
        found = stored.get((use.form, matrix_shape(codes.shape)), [])
        if use.form is Form.FLOAT32 and not any(_equal(codes, weight) for weight in found):
            continue
        error = min((_difference(codes, weight) for weight in found), default=float("nan"))
        checks.append(LayerCheck(name=use.name, lowering=use.form.value, max_abs_error=error))
    return tuple(checks)


def _difference(codes: Codes, stored: Stored) -> float:
    """Return the largest difference of one weight; 0 when codes and scales are the same."""
    if _equal(codes, stored):
        return 0.0
    reference = codes.decode().reshape(stored.shape)
    return float(np.abs(stored.decode() - reference).max(initial=0.0))


def _equal(codes: Codes, stored: Stored) -> bool:
    if stored.form is Form.FLOAT32:
        return bool(np.array_equal(stored.values, codes.decode().reshape(stored.shape)))
    return np.array_equal(stored.values, codes.values.reshape(stored.shape)) and np.array_equal(
        stored.scales, codes.scales.astype(np.float32)
    )


_FORMS = {"qbint4": Form.XNNPACK4, "qcint4": Form.XNNPACK4, "qcint8": Form.XNNPACK8}


def _delegated(program: Program, method: str) -> Iterator[Stored]:
    for weight in filters(program, method):
        values: NDArray[Any] = weight.values
        if values.ndim == 4:  # convolutions are stored [N, height, width, inputs]
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        shape = matrix_shape(values.shape)
        yield Stored(
            form=_FORMS.get(weight.datatype, Form.FLOAT32),
            shape=shape,
            values=values.reshape(shape),
            scales=weight.scales,
        )


def _embedding(
    program: Program, operator: str, codes: dict[str, Any], scales: dict[str, Any]
) -> Stored:
    rows, width = codes["sizes"]
    raw = np.frombuffer(program.constant(codes)[: rows * width], np.uint8).reshape(rows, width)
    count = int(np.prod(scales["sizes"]))
    stored_scales = np.frombuffer(program.constant(scales)[: 4 * count], np.float32)
    if operator.endswith("byte"):
        values, form = raw.view(np.int8), Form.EMBEDDING8
    else:
        values, form = np.empty((rows, 2 * width), np.int8), Form.EMBEDDING4
        values[:, 0::2] = (raw >> 4).astype(np.int8) - 8
        values[:, 1::2] = (raw & 15).astype(np.int8) - 8
    return Stored(
        form=form,
        shape=(rows, values.shape[1]),
        values=values,
        scales=stored_scales.reshape(rows, -1),
    )
