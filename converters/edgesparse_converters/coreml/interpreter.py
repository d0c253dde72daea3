"""The operations of a function, run one after the other, with control flow, constants and state.

Floats are float32 tensors, integers int64; a result is narrowed to the family its declared type
says, and with ``half`` rounded to float16 where that is declared.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError
from edgesparse_converters.coreml.operators import OPERATORS, Call, CallError
from edgesparse_converters.coreml.operators.call import Argument
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import (
    Binding,
    Block,
    Constant,
    Function,
    Operation,
    TensorType,
)

State = dict[str, Tensor]
Values = dict[str, Argument]
Types = dict[str, TensorType]

MAX_ITERATIONS = 1_000_000
CONTROL = ("const", "cond", "while_loop", "read_state", "write_state", "coreml_update_state")
NO_FAULT_OF_OURS = (
    CallError, RuntimeError, ValueError, IndexError, TypeError, OverflowError, KeyError,
    ZeroDivisionError, MemoryError,
)  # fmt: skip
"""What an operation raises on arguments that a damaged program gives it."""


class Interpreter:
    """Runs blocks of one function; decoded constants are kept between runs.

    Args:
        package: Where the constants are.
        function: The function.
        half: Round to float16 what is declared float16.
    """

    def __init__(self, package: Package, function: Function, *, half: bool) -> None:
        self._package, self._function, self._half = package, function, half
        self._constants: Values = {}

    def run(self, block: Block, values: Values, states: State, types: Types) -> None:
        """Run the operations of a block; add results to ``values``, their types to ``types``.

        Raises:
            SourceError: The program contradicts itself.
        """
        for operation in block.operations:
            try:
                results = self._results(operation, values, states, types)
            except NO_FAULT_OF_OURS as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise SourceError(
                    f"{self._package.path.name}: operator {operation.type!r} (of the value "
                    f"{operation.name!r}) cannot run: {reason}"
                ) from None
            if len(results) < len(operation.outputs):
                raise SourceError(f"{operation.name!r}: declared more results than computed")
            constant = _is_constant(operation)
            for named, result in zip(operation.outputs, results, strict=False):
                values[named.name] = result if constant else self._fit(result, named.type)
                types[named.name] = named.type

    def _results(
        self, operation: Operation, values: Values, states: State, types: Types
    ) -> tuple[Argument, ...]:
        kind = operation.type
        if _is_constant(operation):
            return self._constant(operation, values)
        arguments = self._arguments(operation, values)
        if kind == "read_state":
            return (states[str(arguments["input"])].clone(),)
        if kind in ("write_state", "coreml_update_state"):
            return self._update(operation, arguments, states)
        if kind == "cond":
            call = Call(type=kind, arguments=arguments, outputs=())
            chosen = operation.blocks[0 if call.flag("pred") else 1]
            return self._nested(chosen, values, states, types, ())
        if kind == "while_loop":
            return self._loop(operation, arguments, values, states, types)
        call = Call(
            type=kind, arguments=arguments, outputs=tuple(o.type for o in operation.outputs)
        )
        result = OPERATORS[kind](call)
        return result if isinstance(result, tuple) else (result,)

    def _constant(self, operation: Operation, values: Values) -> tuple[Argument, ...]:
        """Return a constant, compressed or not; decoded once and kept."""
        names = [named.name for named in operation.outputs]
        if all(name in self._constants for name in names):
            return tuple(self._constants[name] for name in names)
        if operation.type == "const":
            results: tuple[Argument, ...] = (self._value(operation.attributes["val"]),)
        else:
            arguments = self._arguments(operation, values)
            call = Call(type=operation.type, arguments=arguments, outputs=())
            found = OPERATORS[operation.type](call)
            results = found if isinstance(found, tuple) else (found,)
        for named, result in zip(operation.outputs, results, strict=False):
            self._constants[named.name] = self._fit(result, named.type)
        return tuple(self._constants[name] for name in names)

    def _value(self, constant: Constant) -> Argument:
        """Return a constant as an argument."""
        value = self._package.constant(constant)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return [part for part in map(self._value, value) if isinstance(part, Tensor)]
        array = np.asarray(value)
        return _tensor(array)

    def _arguments(self, operation: Operation, values: Values) -> Values:
        arguments: Values = {}
        for name, bindings in operation.inputs.items():
            bound = [self._bound(binding, values) for binding in bindings]
            if len(bound) == 1 and name not in ("values", "loop_vars"):
                arguments[name] = bound[0]
            elif bound:
                arguments[name] = [part for part in bound if isinstance(part, Tensor)]
        return arguments

    def _bound(self, binding: Binding, values: Values) -> Argument:
        if not isinstance(binding, str):
            return self._value(binding[0])
        if binding not in values:
            raise CallError(f"the value {binding!r} is used before it is computed")
        return values[binding]

    def _update(
        self, operation: Operation, arguments: Values, states: State
    ) -> tuple[Argument, ...]:
        """Write a state; the update that Core ML writes also reads it back."""
        name = str(arguments.get("state", arguments.get("input")))
        value = arguments.get("value", arguments.get("data"))
        if name not in states or not isinstance(value, Tensor):
            raise CallError(f"no state {name!r}")
        kinds = {i.name: i.type for i in self._function.inputs}
        states[name] = self.narrow(value, kinds[name]).clone()
        return (states[name].clone(),) * max(1, len(operation.outputs))

    def _nested(
        self, block: Block, values: Values, states: State, types: Types,
        arguments: tuple[Tensor, ...],
    ) -> tuple[Argument, ...]:  # fmt: skip
        inner = dict(values)
        inner.update(zip((named.name for named in block.inputs), arguments, strict=True))
        self.run(block, inner, states, types)
        return tuple(inner[name] for name in block.outputs)

    def _loop(
        self, operation: Operation, arguments: Values, values: Values, states: State,
        types: Types,
    ) -> tuple[Argument, ...]:  # fmt: skip
        condition, body = operation.blocks
        call = Call(type=operation.type, arguments=arguments, outputs=())
        carried: tuple[Tensor, ...] = tuple(call.tensors("loop_vars"))
        for _ in range(MAX_ITERATIONS):
            (more,) = self._nested(condition, values, states, types, carried)
            if not bool(more):
                return carried
            results = self._nested(body, values, states, types, carried)
            carried = tuple(part for part in results if isinstance(part, Tensor))
        raise CallError(f"a loop of more than {MAX_ITERATIONS} turns")

    def _fit(self, value: Argument, kind: TensorType) -> Argument:
        return self.narrow(value, kind) if isinstance(value, Tensor) else value

    def narrow(self, value: Tensor, kind: TensorType) -> Tensor:
        """Return a result in the family its declared type says, rounded if asked for."""
        if kind.dtype.startswith("float"):
            value = value.to(torch.float32)
            return value.half().float() if self._half and kind.dtype == "float16" else value
        if kind.dtype == "bool":
            return value.to(torch.bool)
        return value.to(torch.int64) if kind.dtype else value


def _is_constant(operation: Operation) -> bool:
    return operation.type == "const" or operation.type.startswith("constexpr_")


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """Return an array as float32, int64 or bool tensor."""
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind == "b":
        return torch.from_numpy(array.astype(np.bool_))
    return torch.from_numpy(array.astype(np.int64))
