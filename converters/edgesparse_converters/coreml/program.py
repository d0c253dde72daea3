"""A Core ML program as values: functions, blocks, operations, constants.

The subset of Core ML's protocol buffers that an ML Program is made of, read with ``wire`` and held
in frozen dataclasses; field numbers are those of MIL.proto and Model.proto. Nothing here computes;
constants in the weight file stay references until they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesparse_converters.coreml import blob
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


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """Type of a value.

    Attributes:
        dtype: ``float16``, ``int32``, ``bool``, ``string``, …; "" for what is no tensor.
        shape: Sizes, None where the program leaves them open.
        is_state: Whether this is state kept between calls.
    """

    dtype: str
    shape: tuple[int | None, ...]
    is_state: bool = False


@dataclass(frozen=True, kw_only=True)
class Named:
    """A value's name and type."""

    name: str
    type: TensorType


@dataclass(frozen=True, kw_only=True)
class BlobValue:
    """A constant in the weight file.

    Attributes:
        file: Path as the program writes it, ``@model_path/weights/weight.bin``.
        offset: Position of its record.
        type: Type and shape the program says it has.
    """

    file: str
    offset: int
    type: TensorType


Constant = NDArray[np.generic] | str | BlobValue | list["Constant"]
Binding = str | tuple["Constant"]
"""An argument: the name of a value, or a constant in a 1-tuple."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
        type: Its kind, ``linear``, ``const``, ….
        inputs: What each parameter is bound to; several bindings where it takes a list.
        outputs: Names and types of its results.
        attributes: Constants of the operation itself; ``val`` of a ``const``.
        blocks: Nested blocks of control flow.
    """

    type: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[Named, ...]
    attributes: Mapping[str, Constant]
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """Name of its first result, or its kind."""
        return self.outputs[0].name if self.outputs else self.type


@dataclass(frozen=True, kw_only=True)
class Block:
    """Operations in order, and which of their results leave the block."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, kw_only=True)
class Function:
    """One entry point.

    Attributes:
        name: ``main``, ``prefill``, ….
        inputs: Its inputs, states among them.
        opset: Version of the operations, ``CoreML8`` for iOS 18.
        block: What it computes.
    """

    name: str
    inputs: tuple[Named, ...]
    opset: str
    block: Block


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a package's model file holds.

    Attributes:
        specification: Version of the specification, 9 for iOS 18.
        functions: Entry points by name.
        default: Name of the function that runs when none is named.
        metadata: What whoever wrote the package left in it, as text.
        shapes: Shapes of the inputs that may have a few and no others.
    """

    specification: int
    functions: Mapping[str, Function]
    default: str
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]


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


def operations(block: Block) -> Iterator[Operation]:
    """Yield the operations of a block and of the blocks nested in it, in order."""
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from operations(nested)


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
    return Operation(
        type=message.text(1),
        inputs={
            key: tuple(_binding(m, depth) for m in argument.messages(1))
            for key, argument in message.entries(2)
        },
        outputs=tuple(_named(m) for m in message.messages(3)),
        blocks=tuple(_block(m, depth + 1) for m in message.messages(4)),
        attributes={key: _constant(value, depth) for key, value in message.entries(5)},
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
