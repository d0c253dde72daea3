"""The weights of a written ``.pte`` against the packed tensors they were made from.

Every form a weight can have in the file is decoded from the file's own bytes and compared with the
packed tensor code for code and scale for scale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.exporting import LayerCheck
from edgesparse.formats.operand import DTYPES as BUFFER_DTYPES
from edgesparse.packed import FORMATS, Codes, PackedTensor, matrix_shape
from edgesparse.pattern import DENSE
from edgesparse_converters.executorch.lowering import Form, Use
from edgesparse_converters.executorch.operators import EMBEDDING, LINEAR
from edgesparse_converters.executorch.program import Program
from edgesparse_converters.executorch.routing import ROUTED
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
        group_size: Columns per scale; the last group may be shorter. 0 without scales.
    """

    form: Form
    shape: tuple[int, int]
    values: NDArray[Any] = field(repr=False)
    scales: NDArray[np.float32] = field(repr=False)
    group_size: int

    def decode(self) -> NDArray[np.float32]:
        """Return the weight as a float32 matrix."""
        values = self.values.astype(np.float32)
        if self.group_size == 0:
            return values
        return values * np.repeat(self.scales, self.group_size, axis=1)[:, : self.shape[1]]


def read_weights(program: Program, method: str) -> Iterator[Stored]:
    """Yield every weight of a method, in whichever form the file holds it."""
    yield from _delegated(program, method)
    plan = program.methods[method]
    for use in program.kernel_uses(method):
        name = use.operator.partition(".")[0]
        if name in ("quantized_decomposed::embedding_4bit", "quantized_decomposed::embedding_byte"):
            codes, scales = (plan["values"][use.arguments[i]]["val"] for i in (0, 1))
            yield _embedding(program, name, codes, scales)
        elif use.operator in (LINEAR, EMBEDDING):
            yield _packed(program, plan["values"], use.arguments[1:5])
        elif use.operator == ROUTED:
            yield from _routed(program, plan["values"], use.arguments[2:6])


def check_layers(
    program: Program, method: str, uses: Iterable[Use], packed: Mapping[str, PackedTensor]
) -> tuple[LayerCheck, ...]:
    """Return one check per use, by the name of the parameter there.

    A float32 weight that the compiler folded into something else cannot be found as itself and
    gets no check; the outputs speak for it.
    """
    known = {_digest(weight) for weight in read_weights(program, method)}
    checks = []
    for use in uses:
        own = packed[use.tensor]
        wanted = _as_stored(FORMATS.get(own.spec.name).unpack(own), use.form)  # not kept by it
        error = 0.0
        if _digest(wanted) not in known:
            if use.form is Form.FLOAT32:
                continue
            error = _closest(wanted, read_weights(program, method))
        checks.append(LayerCheck(name=use.name, lowering=use.form.value, max_abs_error=error))
    return tuple(checks)


def _closest(wanted: Stored, stored: Iterable[Stored]) -> float:
    """Return the largest difference to the nearest weight of this form and shape, NaN without."""
    reference = wanted.decode()
    found = (s for s in stored if (s.form, s.shape) == (wanted.form, wanted.shape))
    differences = (np.abs(s.decode() - reference).max(initial=0.0) for s in found)
    return min(map(float, differences), default=float("nan"))


def _as_stored(codes: Codes, form: Form) -> Stored:
    """Return codes as a file that holds them exactly would give them back."""
    shape = matrix_shape(codes.shape)
    is_float = form is Form.FLOAT32
    return Stored(
        form=form,
        shape=shape,
        values=(codes.decode() if is_float else codes.values).reshape(shape),
        scales=np.zeros((shape[0], 0), np.float32) if is_float else codes.scales.astype(np.float32),
        group_size=0 if is_float else codes.group_size,
    )


def _digest(weight: Stored) -> bytes:
    """Return a digest of form, shape and numbers: of a large model one weight is held at a time."""
    values = weight.values
    # 0 is -0; and 4 bits may be held in any integer type.
    values = values.astype(np.int16) if values.dtype.kind in "iu" else values + np.float32(0)
    digest = hashlib.sha256(f"{weight.form} {weight.shape}".encode())
    for numbers in (values, weight.scales):
        digest.update(np.ascontiguousarray(numbers).data)
    return digest.digest()


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
            group_size=shape[1] // max(1, weight.scales.shape[1]) if weight.scales.size else 0,
        )


Values = list[dict[str, Any]]


def _packed(program: Program, values: Values, arguments: tuple[int, ...]) -> Stored:
    """Unpack the weight of one call of our operators from the program's constants."""
    buffers, name, shape, group_size = (values[index]["val"] for index in arguments)
    sizes = tuple(values[index]["val"]["int_val"] for index in shape["items"])
    label, group = name["string_val"], group_size["int_val"]
    return _unpacked(program, values, list(buffers["items"]), label, sizes, group)


def _routed(program: Program, values: Values, arguments: tuple[int, ...]) -> Iterator[Stored]:
    """Unpack the weights of all experts of one call."""
    buffers, names, shape, groups = (values[index]["val"] for index in arguments)
    sizes, group_sizes = (
        tuple(values[index]["val"]["int_val"] for index in value["items"])
        for value in (shape, groups)
    )
    rest = list(buffers["items"])
    for name, group_size in zip(names["string_val"].split(","), group_sizes, strict=True):
        yield _unpacked(program, values, rest, name, sizes, group_size)


def _unpacked(
    program: Program,
    values: Values,
    buffers: list[int],
    name: str,
    sizes: tuple[int, ...],
    group_size: int,
) -> Stored:
    """Unpack the weight whose buffers come first in ``buffers``, and take them off."""
    layout = FORMATS.get(name)
    spec = layout.spec(group_size=group_size, pattern=DENSE)
    arrays = {}
    for buffer_name in layout.predict_nbytes(spec, sizes):
        tensor = values[buffers.pop(0)]["val"]
        dtype = np.dtype(BUFFER_DTYPES[buffer_name])
        stored = program.constant(tensor)[: dtype.itemsize * math.prod(tensor["sizes"])]
        arrays[buffer_name] = np.frombuffer(stored, dtype)
    codes = PackedTensor(spec=spec, shape=sizes, buffers=arrays).codes
    matrix = matrix_shape(sizes)
    return Stored(
        form=Form.PACKED,
        shape=matrix,
        values=codes.values.reshape(matrix),
        scales=codes.scales.astype(np.float32),
        group_size=codes.group_size,
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
    columns = values.shape[1]
    scales_by_row = stored_scales.reshape(rows, -1)
    return Stored(
        form=form,
        shape=(rows, columns),
        values=values,
        scales=scales_by_row,
        group_size=columns // scales_by_row.shape[1],
    )
