"""From a ``Form`` to coremltools' operations, while a program is being built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse_converters.coreml import blob
from edgesparse_converters.coreml.forms import (
    AFFINE,
    CONST,
    LUT_TO_DENSE,
    LUT_TO_SPARSE,
    SHIFT_SCALE,
    SPARSE_SHIFT_SCALE,
    SPARSE_TO_DENSE,
    Form,
)
from edgesparse_converters.coreml.placeholders import is_hollow


def emit(form: Form, name: str) -> Any:
    """Build the operations of ``form``; return the variable that is the whole weight.

    Scales and values are given as float32 and narrowed by coremltools' own pass: they are float16
    numbers, so nothing changes, while float16 here would break ``linear`` up into ``matmul``.
    """
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    if form.old and form.operations != (CONST,):
        return _emit_old(form, name)
    data: Any = _typed(form)
    mask: Any = None if form.mask is None else _bits(form.mask, 1)
    table: Any = _one_table(form)
    for step, operation in enumerate(form.operations):
        last = step == len(form.operations) - 1
        step_name = name if last else f"{name}_{step}"
        if operation == CONST:
            data = mb.const(val=data, name=step_name)
        elif operation == SHIFT_SCALE and not last:
            table = mb.constexpr_blockwise_shift_scale(**_scaled_tables(form), name=step_name)
        elif operation == SHIFT_SCALE:
            data = mb.constexpr_blockwise_shift_scale(
                data=data, scale=form.scales, **_offset(form), name=step_name
            )
        elif operation == SPARSE_SHIFT_SCALE:
            mask, data = mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=mask,
                nonzero_data=data,
                scale=form.scales,
                **_offset(form),
                name=step_name,
            )
        elif operation == LUT_TO_DENSE:
            data = mb.constexpr_lut_to_dense(indices=data, lut=table, name=step_name)
        elif operation == LUT_TO_SPARSE:
            mask, data = mb.constexpr_lut_to_sparse(
                indices_mask=mask, indices_nonzero_data=data, lut=table, name=step_name
            )
        elif operation == SPARSE_TO_DENSE:
            data = mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, name=step_name)
        if is_hollow(form) and not isinstance(data, np.ndarray):
            _keep_apart(data.op.inputs, step_name)
    return data


def _emit_old(form: Form, name: str) -> Any:
    """Build the one operation of a form of iOS 16, whose masks and indices are rows of bytes."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    shape = np.array(form.shape, np.uint32)
    if form.operations == (AFFINE,):
        assert form.scales is not None
        zeros = np.zeros(form.shape[0], np.int8) if form.zeros is None else form.zeros.reshape(-1)
        return mb.constexpr_affine_dequantize(
            quantized_data=form.kept, zero_point=zeros, scale=form.scales.reshape(-1),
            axis=np.int32(0), name=name,
        )  # fmt: skip
    if form.entries is not None:
        return mb.constexpr_lut_to_dense(
            indices=_packed(form.kept, form.bits), lut=form.entries.reshape(-1), shape=shape,
            name=name,
        )  # fmt: skip
    assert form.mask is not None
    return mb.constexpr_sparse_to_dense(
        nonzero_data=form.kept.astype(np.float32), mask=_packed(form.mask, 1), shape=shape,
        name=name,
    )  # fmt: skip


def _packed(array: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return np.frombuffer(blob.pack(array.reshape(-1), f"uint{bits}"), np.uint8)


def _keep_apart(inputs: Mapping[str, Any], name: str) -> None:
    """Keep coremltools from merging placeholders, which are all alike, as equal constants."""
    for parameter, variable in inputs.items():
        if variable.op.op_type == CONST and parameter.endswith(("mask", "data", "indices")):
            variable.op.weight_key = f"{name}/{parameter}"


def _offset(form: Form) -> dict[str, NDArray[Any]]:
    """Return the zeros of a form in the type of the codes they are taken from."""
    if form.zeros is None:
        return {}
    if form.bits == 4 and form.table is None:
        from coremltools.converters.mil.mil import types

        return {"offset": form.zeros.view(types.np_int4_dtype)}
    return {"offset": form.zeros}


def _one_table(form: Form) -> NDArray[Any] | None:
    """Return the table as the look-up takes it: the solver's, or one for the whole weight."""
    if form.entries is not None:
        return form.entries[..., None]
    if form.table is None:
        return None
    return form.table.reshape((1,) * len(form.shape) + (-1, 1))


def _scaled_tables(form: Form) -> dict[str, NDArray[Any]]:
    """Return data and scale of one table per block of scales."""
    assert form.table is not None
    assert form.scales is not None
    scale = form.scales[..., None, None]
    data = np.broadcast_to(form.table[:, None], (*form.scales.shape, form.table.size, 1))
    tables: dict[str, NDArray[Any]] = {"data": np.ascontiguousarray(data), "scale": scale}
    if form.zeros is not None:
        tables["offset"] = form.zeros[..., None, None]
    return tables


def _typed(form: Form) -> NDArray[Any]:
    """Return the kept numbers in coremltools' type for their width."""
    if form.bits == 16:
        return form.kept.astype(np.float32, copy=False)
    if form.is_indexed:
        return _bits(form.kept, form.bits)
    if form.bits == 8:
        return form.kept.astype(np.int8, copy=False)
    from coremltools.converters.mil.mil import types

    return form.kept.view(types.np_int4_dtype)


def _bits(array: NDArray[Any], bits: int) -> NDArray[Any]:
    from coremltools.converters.mil.mil import types

    # A view, since a copy of a placeholder would take the memory it is there to save.
    return array.view(getattr(types, f"np_uint{bits}_dtype"))
