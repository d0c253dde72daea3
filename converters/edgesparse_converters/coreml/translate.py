"""From the ``edgesparse::`` operators to ``constexpr_`` operations, on the solver's own numbers.

Registered with coremltools' public ``register_torch_op``. The numbers come from the graph; where it
was traced with placeholders, by name from the packed model (``Storage.numbers``). How many bits to
store is told from outside, since four-bit codes may happen to fit into three.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse_converters.coreml import compat
from edgesparse_converters.coreml.emit import emit
from edgesparse_converters.coreml.forming import code_form, form_of, table_form, value_form
from edgesparse_converters.coreml.forms import DEFAULT_CHOICE, Choice, Form
from edgesparse_converters.coreml.placeholders import Numbers, hollow


@dataclass(kw_only=True)
class Storage:
    """How weights are stored in one conversion, and what was.

    Attributes:
        bits: Bits of each weight's codes, by name.
        choice: What may be chosen about the package.
        numbers: Gives a weight's codes by name when the graph holds none; the program is then
            written with placeholders, see ``placeholders``. None takes what the graph holds.
        written: Forms written, by name of the weight; hollow ones where ``numbers`` was given.
        names: Name of the value in the program, by name of the weight; equal weights share one.
    """

    bits: Mapping[str, int]
    choice: Choice = DEFAULT_CHOICE
    numbers: Numbers | None = None
    written: dict[str, Form] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


_STORAGE: ContextVar[Storage] = ContextVar("storage")


@contextmanager
def storing(storage: Storage) -> Iterator[Storage]:
    """Translate with these choices inside the block."""
    register()
    token = _STORAGE.set(storage)
    try:
        yield storage
    finally:
        _STORAGE.reset(token)


@cache
def register() -> None:
    """Tell coremltools about the operators, once per process."""
    compat.apply()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    register_torch_op(_dequantize, torch_alias=["edgesparse::dequantize", "edgesparse.dequantize"])
    register_torch_op(
        _dequantize_shifted,
        torch_alias=["edgesparse::dequantize_shifted", "edgesparse.dequantize_shifted"],
    )
    register_torch_op(_look_up, torch_alias=["edgesparse::look_up", "edgesparse.look_up"])
    register_torch_op(
        _sparse_values, torch_alias=["edgesparse::sparse_values", "edgesparse.sparse_values"]
    )
    register_torch_op(
        _write_places, torch_alias=["edgesparse::write_places", "edgesparse.write_places"]
    )


def _dequantize(context: Any, node: Any) -> None:
    """Translate ``edgesparse::dequantize(codes, keep_mask, scales, group_size, name)``."""
    group_size, name = int(node.inputs[3]), str(node.inputs[4])
    _add_codes(context, node, name, group_size, zeros=None)


def _dequantize_shifted(context: Any, node: Any) -> None:
    """Translate ``dequantize_shifted(codes, keep_mask, scales, zeros, group_size, name)``."""
    group_size, name = int(node.inputs[4]), str(node.inputs[5])
    _add_codes(context, node, name, group_size, zeros=3)


def _add_codes(context: Any, node: Any, name: str, group_size: int, *, zeros: int | None) -> None:
    """Add codes with scales; ``zeros`` is the place of their zeros among the inputs."""
    storage = _STORAGE.get()
    if storage.numbers is not None:
        _add(context, node, name, form_of(storage.numbers(name), storage.choice))
        return
    codes, mask, scales = (_constant(context, node, i) for i in range(3))
    shift = None if zeros is None else _constant(context, node, zeros)
    form = code_form(
        codes.astype(np.int8, copy=False),
        _mask(mask),
        scales.astype(np.float32, copy=False),
        group_size=group_size,
        bits=storage.bits[name],
        choice=storage.choice,
        zeros=None if shift is None else shift.astype(np.int8, copy=False),
    )
    _add(context, node, name, form)


def _look_up(context: Any, node: Any) -> None:
    """Translate ``edgesparse::look_up(indices, keep_mask, table, table_rows, name)``."""
    table_rows, name = int(node.inputs[3]), str(node.inputs[4])
    storage = _STORAGE.get()
    if storage.numbers is not None:
        _add(context, node, name, form_of(storage.numbers(name), storage.choice))
        return
    indices, mask, table = (_constant(context, node, i) for i in range(3))
    form = table_form(
        indices.astype(np.int8, copy=False),
        _mask(mask),
        table.astype(np.float32, copy=False),
        table_rows=table_rows,
    )
    _add(context, node, name, form)


def _sparse_values(context: Any, node: Any) -> None:
    """Translate ``edgesparse::sparse_values(values, keep_mask, name)``."""
    name, storage = str(node.inputs[2]), _STORAGE.get()
    if storage.numbers is not None:
        _add(context, node, name, form_of(storage.numbers(name), storage.choice))
        return
    values, mask = (_constant(context, node, i) for i in range(2))
    form = value_form(values.astype(np.float32, copy=False), _mask(mask))
    _add(context, node, name, form)


def _write_places(context: Any, node: Any) -> None:
    """Translate ``edgesparse::write_places(cache, new, start)``."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    cache, new, start = (context[name] for name in node.inputs)
    place = mb.cast(x=start, dtype="int32")
    end = mb.add(x=place, y=np.int32(new.shape[2]))
    zeros = np.zeros(2, np.int32)
    written = mb.slice_update(
        x=cache,
        update=new,
        begin=mb.concat(values=[zeros, place, zeros[:1]], axis=0),
        end=mb.concat(values=[zeros, end, zeros[:1]], axis=0),
        begin_mask=[True, True, False, True],
        end_mask=[True, True, False, True],
        name=node.name,
    )
    context.add(written)


def _constant(context: Any, node: Any, index: int) -> NDArray[Any]:
    return np.asarray(context[node.inputs[index]].val)


def _mask(mask: NDArray[Any]) -> NDArray[np.bool_] | None:
    return mask.astype(np.bool_, copy=False) if mask.size else None


def _add(context: Any, node: Any, name: str, form: Form) -> None:
    """Emit the form once per content and let the node be its result.

    coremltools' own removal of duplicates fails on operations with two outputs (the sparse ones),
    so that two equal weights would end in "Cannot delete op with active output".
    """
    emitted = context.__dict__.setdefault("_edgesparse_emitted", {})
    key = _digest(form)
    storage = _STORAGE.get()
    form = form if storage.numbers is None else hollow(form)
    if key not in emitted:
        program_name = unique_name(name, {taken for taken, _ in emitted.values()})
        emitted[key] = program_name, emit(form, program_name)
    storage.written[name] = form
    storage.names[name], variable = emitted[key]
    context.add(variable, torch_name=node.name)


def unique_name(name: str, taken: set[str]) -> str:
    """Return the name of a weight as an identifier of a Core ML program, unlike those taken."""
    plain = re.sub(r"[^0-9a-zA-Z]+", "_", name)
    # coremltools renames what begins with a digit or is a reserved word, none of which has a "_".
    if not plain[0].isalpha() or "_" not in plain:
        plain = f"weight_{plain}"
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found


def _digest(form: Form) -> bytes:
    digest = hashlib.sha256(repr((form.bits, form.shape, form.operations)).encode())
    for array in (form.mask, form.kept, form.table, form.scales, form.zeros, form.entries):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
