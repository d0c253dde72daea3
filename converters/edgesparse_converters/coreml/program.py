"""A Core ML program as values: functions, blocks, operations, constants.

The subset of Core ML's protocol buffers that an ML Program is made of, in frozen dataclasses, as
``parsing`` reads them. Nothing here computes; constants in the weight file stay references until
they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        ranges: Least and largest size of every axis of the inputs that have open ones; -1 for none.
    """

    specification: int
    functions: Mapping[str, Function]
    default: str
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    ranges: Mapping[str, tuple[tuple[int, int], ...]]


def operations(block: Block) -> Iterator[Operation]:
    """Yield the operations of a block and of the blocks nested in it, in order."""
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from operations(nested)
