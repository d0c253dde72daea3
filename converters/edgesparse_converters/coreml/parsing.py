"""From the bytes of a model file to a ``Program``.

Read with ``wire``; field numbers are those of MIL.proto and Model.proto.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesparse_converters.coreml import blob
from edgesparse_converters.coreml.program import (
    Binding,
    BlobValue,
    Block,
    Constant,
    Function,
    Named,
    Operation,
    Program,
    TensorType,
)
from edgesparse_converters.coreml.wire import Message, WireError

DATA_TYPES = {
    1: "bool", 2: "string",
    10: "float16", 11: "float32", 12: "float64",
    21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64",
    35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
MAX_DEPTH = 32
MAX_ELEMENTS = 1 << 40


def parse(data: memoryview) -> Program:
    """Read a model file.

    Raises:
        WireError: Not a Core ML model, not an ML Program, or damaged.
    """
    model = Message(data)
    if 502 not in model:
        raise WireError("no ML Program in it; only models converted to mlprogram can be read")
    program = model.message(502)
    functions = {name: _function(name, message) for name, message in program.entries(2)}
    if not functions:
        raise WireError("a program without functions")
    description = model.message(2)
    default = description.text(21)
    if default not in functions:
        default = "main" if "main" in functions else next(iter(functions))
    metadata = {m.text(1): m.text(2) for m in description.message(100).messages(100)}
    return Program(
        specification=model.integer(1),
        functions=functions,
        default=default,
        metadata=metadata,
        shapes=_enumerated(description),
        ranges=_ranges(description),
    )


def _enumerated(description: Message) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the shapes of every input that lists them."""
    found = {}
    for feature in description.messages(1):
        array = feature.message(3).message(5)
        if 21 in array:
            listed = array.message(21).messages(1)
            found[feature.text(1)] = tuple(tuple(s.integers(1).tolist()) for s in listed)
    return found


def _ranges(description: Message) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the bounds of every axis of the inputs that have open ones."""
    found = {}
    for feature in description.messages(1):
        array = feature.message(3).message(5)
        if 31 in array:
            sizes = array.message(31).messages(1)
            found[feature.text(1)] = tuple((s.integer(1), s.integer(2)) for s in sizes)
    return found


def _function(name: str, message: Message) -> Function:
    opset = message.text(2)
    blocks = dict(message.entries(3))
    chosen = blocks.get(opset) or next(iter(blocks.values()), None)
    if chosen is None:
        raise WireError(f"function {name!r} has no block")
    inputs = tuple(_named(m) for m in message.messages(1))
    return Function(name=name, inputs=inputs, opset=opset, block=_block(chosen, 0))


def _block(message: Message, depth: int) -> Block:
    if depth > MAX_DEPTH:
        raise WireError(f"blocks nested more than {MAX_DEPTH} deep")
    return Block(
        inputs=tuple(_named(m) for m in message.messages(1)),
        outputs=tuple(message.texts(2)),
        operations=tuple(_operation(m, depth) for m in message.messages(3)),
    )


def _operation(message: Message, depth: int) -> Operation:
    kind = message.text(1)
    inputs = {
        key: tuple(_binding(m, depth) for m in argument.messages(1))
        for key, argument in message.entries(2)
    }
    attributes = {key: _constant(value, depth) for key, value in message.entries(5)}
    if kind.startswith("constexpr_"):  # systems before iOS 18 have their arguments as attributes
        inputs = {key: ((value,),) for key, value in attributes.items() if key != "name"} | inputs
    return Operation(
        type=kind,
        inputs=inputs,
        outputs=tuple(_named(m) for m in message.messages(3)),
        blocks=tuple(_block(m, depth + 1) for m in message.messages(4)),
        attributes=attributes,
    )


def _binding(message: Message, depth: int) -> Binding:
    return (_constant(message.message(2), depth),) if 2 in message else message.text(1)


def _named(message: Message) -> Named:
    return Named(name=message.text(1), type=_type(message.message(2), 0))


def _type(message: Message, depth: int) -> TensorType:
    if depth > MAX_DEPTH:
        raise WireError(f"types nested more than {MAX_DEPTH} deep")
    if 5 in message:
        inner = _type(message.message(5).message(1), depth + 1)
        return TensorType(dtype=inner.dtype, shape=inner.shape, is_state=True)
    if 1 not in message:
        return TensorType(dtype="", shape=())
    tensor = message.message(1)
    code = tensor.integer(1)
    if code not in DATA_TYPES:
        raise WireError(f"data type {code} is not one this reader knows")
    return TensorType(dtype=DATA_TYPES[code], shape=tuple(map(_size, tensor.messages(3))))


def _size(dimension: Message) -> int | None:
    if 1 not in dimension:
        return None
    size = dimension.message(1).integer(1)
    if size < 0:
        raise WireError(f"a dimension of size {size}")
    return size


def _constant(message: Message, depth: int) -> Constant:
    if depth > MAX_DEPTH:
        raise WireError(f"values nested more than {MAX_DEPTH} deep")
    kind = _type(message.message(2), 0)
    if 5 in message:
        reference = message.message(5)
        return BlobValue(file=reference.text(1), offset=reference.integer(2), type=kind)
    immediate = message.message(3)
    if 1 in immediate:
        return _tensor(immediate.message(1), kind)
    for number in (2, 3):  # a tuple or a list of values
        if number in immediate:
            return [_constant(m, depth + 1) for m in immediate.message(number).messages(1)]
    raise WireError("a constant without a value")


def _tensor(message: Message, kind: TensorType) -> NDArray[np.generic] | str:
    """Return an immediate tensor; one string is returned as a string."""
    shape = known(kind.shape)
    if 4 in message:
        texts = message.message(4).texts(1)
        return texts[0] if len(texts) == 1 else np.array(texts, np.str_)
    if kind.dtype in ("", "string"):
        raise WireError(f"a tensor of type {kind.dtype!r} without a value")
    flat = _flat(message, kind.dtype, shape)
    count = int(np.prod([1, *shape], dtype=object))
    if flat.size != count:
        raise WireError(f"a constant of shape {shape} with {flat.size} elements")
    return flat.reshape(shape)


def _flat(message: Message, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    if 7 in message:
        data = message.message(7).bytes(1)
        count = int(np.prod([1, *shape], dtype=object))
        if dtype not in blob.TYPES or len(data) != blob.nbytes(dtype, count):
            raise WireError(f"{len(data)} bytes are no {dtype} of shape {shape}")
        return blob.unpack(data, dtype, count)
    for number, floating in ((1, np.float32), (6, np.float64)):
        if number in message:
            return message.message(number).numbers(1, floating).astype(dtype)
    for number in (2, 3, 5):
        if number in message:
            return message.message(number).integers(1).astype(dtype)
    return np.zeros(0, dtype if dtype not in blob.TYPES else blob.TYPES[dtype].dtype)


def known(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """Return a shape all of whose sizes are known.

    Raises:
        WireError: One is open, or the whole is absurd.
    """
    sizes = [size for size in shape if size is not None]
    if len(sizes) != len(shape):
        raise WireError(f"a constant with the open shape {shape}")
    if int(np.prod([1, *sizes], dtype=object)) > MAX_ELEMENTS:
        raise WireError(f"a constant of shape {tuple(sizes)}")
    return tuple(sizes)
