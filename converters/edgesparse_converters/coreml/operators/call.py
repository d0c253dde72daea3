"""One operation about to run: its arguments by name, checked for what they are.

Floats are float32 tensors whatever width the program declares, integers int64, truth values bool;
the executor narrows results to what is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgesparse_converters.coreml.program import TensorType

MAX_ELEMENTS = 1 << 31
"""Elements of one result: a damaged size must end in an error, not in the memory of the host."""

Argument = Tensor | str | list[Tensor]
Result = Tensor | tuple[Tensor, ...]


class CallError(ValueError):
    """An argument that is missing or of the wrong kind."""


def within_limits(sizes: Iterable[int]) -> None:
    """Refuse a result of absurd size before it is made.

    Raises:
        CallError: More than ``MAX_ELEMENTS`` elements, or a negative size.
    """
    count = 1
    for size in sizes:
        count *= size
        if size < 0 or count > MAX_ELEMENTS:
            raise CallError(f"a result of more than {MAX_ELEMENTS} elements")


def broadcast_within_limits(*shapes: Sequence[int]) -> None:
    """Refuse operands that together would become absurdly large."""
    within_limits(np.broadcast_shapes(*(tuple(shape) for shape in shapes)))


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operation with its arguments.

    Attributes:
        type: Kind of the operation.
        arguments: Arguments by parameter name; absent ones are at their default.
        outputs: Declared types of the results.
    """

    type: str
    arguments: Mapping[str, Argument]
    outputs: tuple[TensorType, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def tensor(self, name: str = "x") -> Tensor:
        """Return a tensor argument.

        Raises:
            CallError: It is missing or not one tensor.
        """
        value = self.arguments.get(name)
        if not isinstance(value, Tensor):
            raise CallError(f"argument {name!r} is {type(value).__name__}, expected a tensor")
        return value

    def optional(self, name: str) -> Tensor | None:
        """Return a tensor argument, or None if it is absent."""
        return self.tensor(name) if name in self.arguments else None

    def tensors(self, name: str = "values") -> list[Tensor]:
        """Return an argument that is a list of tensors."""
        value = self.arguments.get(name)
        if isinstance(value, Tensor):
            return [value]
        if not isinstance(value, list):
            raise CallError(f"argument {name!r} is {type(value).__name__}, expected tensors")
        return value

    def index(self, name: str) -> Tensor:
        """Return an integer tensor argument."""
        return self.tensor(name).to(torch.int64)

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        """Return an argument that is a list of integers."""
        if name not in self.arguments and default is not None:
            return default
        return [int(value) for value in self.tensor(name).reshape(-1).tolist()]

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an argument that is one integer."""
        return int(self.number(name, default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return an argument that is one number."""
        if name not in self.arguments and default is not None:
            return default
        value = self.tensor(name)
        if value.numel() != 1:
            raise CallError(f"argument {name!r} has {value.numel()} elements, expected one")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return an argument that is true or false."""
        return bool(self.number(name, float(default)))

    def flags(self, name: str, count: int) -> list[bool]:
        """Return ``count`` truth values, all False if absent."""
        return [bool(v) for v in self.integers(name, [0] * count)]

    def text(self, name: str, default: str | None = None) -> str:
        """Return an argument that is a word."""
        value = self.arguments.get(name, default)
        if not isinstance(value, str):
            raise CallError(f"argument {name!r} is {type(value).__name__}, expected a word")
        return value

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Declared shape of the first result."""
        return self.outputs[0].shape if self.outputs else ()


Operator = Callable[[Call], Result]
