"""Run a package on this host, from its bytes on disk, without coremltools.

    executor = Executor(Path("model.mlpackage"), precision="float16")
    outputs = executor.run({"input_ids": ids})

``float32`` computes every operation in float32; what float16 the file holds is exact in it.
``float16`` rounds every result to the width the program declares, as a device that computes in
float16 would at best: sums inside one operation are still accumulated in float32. What a device
does inside an operation is its own and not shown here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError, Unsupported, UsageError
from edgesparse_converters.coreml.operators import OPERATORS, Call, CallError
from edgesparse_converters.coreml.operators.call import Argument, within_limits
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import (
    Binding,
    Block,
    Function,
    Operation,
    TensorType,
    operations,
)

Precision = Literal["float32", "float16"]
State = dict[str, Tensor]
Values = dict[str, Argument]

MAX_ITERATIONS = 1_000_000
CONTROL = ("const", "cond", "while_loop", "read_state", "write_state", "coreml_update_state")


class Executor:
    """One function of a package, ready to run.

    Args:
        package: The package, or its path.
        precision: ``float32`` or ``float16``.
        function: Name of the function; None is the package's default.

    Raises:
        SourceError: The package is damaged.
        Unsupported: It uses operators that are not known here, by name.
        UsageError: It has no such function.
    """

    def __init__(
        self,
        package: Package | Path,
        *,
        precision: Precision = "float32",
        function: str | None = None,
    ) -> None:
        self.package = package if isinstance(package, Package) else Package(package)
        self.half = precision == "float16"
        program = self.package.program
        name = function or program.default
        if name not in program.functions:
            raise UsageError(
                f"{self.package.path}: no function {name!r}; it has {', '.join(program.functions)}"
            )
        self.function: Function = program.functions[name]
        self._constants: Values = {}
        self._refuse_unknown_operators()

    @property
    def inputs(self) -> dict[str, TensorType]:
        """Names and types of the inputs, states left out."""
        return {i.name: i.type for i in self.function.inputs if not i.type.is_state}

    def make_state(self) -> State:
        """Return new state, all zeros, for a sequence of runs."""
        states = {i.name: i.type for i in self.function.inputs if i.type.is_state}
        return {name: torch.zeros(_known(kind)) for name, kind in states.items()}

    def run(
        self, inputs: Mapping[str, NDArray[np.generic]], state: State | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """Compute the outputs by name.

        Args:
            inputs: One array for every input.
            state: What ``make_state`` gave, changed in place; None starts from zeros.

        Raises:
            UsageError: An input is missing, unknown or of another shape.
            SourceError: The program contradicts itself.
        """
        values: Values = dict(self._checked(inputs))
        states = self.make_state() if state is None else state
        values.update({name: name for name in states})
        types: dict[str, TensorType] = {}
        with torch.inference_mode():
            self._block(self.function.block, values, states, types)
        return {
            name: self._array(self._tensor(values, name), types.get(name))
            for name in self.function.block.outputs
        }

    def _checked(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
        expected = self.inputs
        if set(inputs) != set(expected):
            raise UsageError(
                f"{self.package.path.name} takes {', '.join(expected) or 'no inputs'}; given "
                f"{', '.join(inputs) or 'none'}"
            )
        checked = {}
        for name, kind in expected.items():
            array = np.asarray(inputs[name])
            sizes = zip(array.shape, kind.shape, strict=False)
            if array.ndim != len(kind.shape) or any(
                n not in (m, None) and m is not None for n, m in sizes
            ):
                raise UsageError(f"input {name!r} has shape {array.shape}, expected {kind.shape}")
            allowed = self.package.program.shapes.get(name, (array.shape,))
            if array.shape not in allowed:
                listed = ", ".join(map(str, allowed))
                raise UsageError(
                    f"input {name!r} has shape {array.shape}, expected one of {listed}"
                )
            checked[name] = self._narrow(torch.from_numpy(np.ascontiguousarray(array)), kind)
        return checked

    def _block(
        self, block: Block, values: Values, states: State, types: dict[str, TensorType]
    ) -> None:
        """Run the operations of a block; results are added to ``values``."""
        for operation in block.operations:
            try:
                results = self._results(operation, values, states, types)
            except (CallError, RuntimeError, ValueError, IndexError, TypeError, OverflowError,
                    KeyError, ZeroDivisionError, MemoryError) as error:  # fmt: skip
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise SourceError(
                    f"{self.package.path.name}: operator {operation.type!r} (of the value "
                    f"{operation.name!r}) cannot run: {reason}"
                ) from None
            if len(results) < len(operation.outputs):
                raise SourceError(f"{operation.name!r}: declared more results than computed")
            constant = _is_constant(operation)
            for named, result in zip(operation.outputs, results, strict=False):
                values[named.name] = result if constant else self._fit(result, named.type)
                types[named.name] = named.type

    def _results(
        self, operation: Operation, values: Values, states: State, types: dict[str, TensorType]
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

    def _value(self, constant: object) -> Argument:
        """Return a constant as an argument."""
        value = self.package.constant(constant)  # type: ignore[arg-type]
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
        kinds = {i.name: i.type for i in self.function.inputs}
        states[name] = self._narrow(value, kinds[name]).clone()
        return (states[name].clone(),) * max(1, len(operation.outputs))

    def _nested(
        self, block: Block, values: Values, states: State, types: dict[str, TensorType],
        arguments: tuple[Tensor, ...],
    ) -> tuple[Argument, ...]:  # fmt: skip
        inner = dict(values)
        inner.update(zip((named.name for named in block.inputs), arguments, strict=True))
        self._block(block, inner, states, types)
        return tuple(inner[name] for name in block.outputs)

    def _loop(
        self, operation: Operation, arguments: Values, values: Values, states: State,
        types: dict[str, TensorType],
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
        return self._narrow(value, kind) if isinstance(value, Tensor) else value

    def _narrow(self, value: Tensor, kind: TensorType) -> Tensor:
        """Return a result in the family its declared type says, rounded if asked for."""
        if kind.dtype.startswith("float"):
            value = value.to(torch.float32)
            return value.half().float() if self.half and kind.dtype == "float16" else value
        if kind.dtype == "bool":
            return value.to(torch.bool)
        return value.to(torch.int64) if kind.dtype else value

    def _tensor(self, values: Values, name: str) -> Tensor:
        value = values.get(name)
        if not isinstance(value, Tensor):
            raise SourceError(f"{self.package.path.name}: the output {name!r} is not computed")
        return value

    def _array(self, value: Tensor, kind: TensorType | None) -> NDArray[np.generic]:
        integer = kind is not None and kind.dtype == "int32"
        return value.to(torch.int32).numpy() if integer else value.numpy()

    def _refuse_unknown_operators(self) -> None:
        known = {*OPERATORS, *CONTROL}
        unknown = sorted({o.type for o in operations(self.function.block)} - known)
        if unknown:
            raise Unsupported(
                f"{self.package.path.name}: operators the host executor does not know: "
                f"{', '.join(unknown)}"
            )


def _is_constant(operation: Operation) -> bool:
    return operation.type == "const" or operation.type.startswith("constexpr_")


def _known(kind: TensorType) -> tuple[int, ...]:
    sizes = tuple(size for size in kind.shape if size is not None)
    if len(sizes) != len(kind.shape):
        raise SourceError(f"a state of open shape {kind.shape}")
    try:
        within_limits(sizes)
    except CallError as error:
        raise SourceError(f"a state of shape {sizes}: {error}") from None
    return sizes


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """Return an array as float32, int64 or bool tensor."""
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind == "b":
        return torch.from_numpy(array.astype(np.bool_))
    return torch.from_numpy(array.astype(np.int64))
