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
from edgesparse_converters.coreml.interpreter import CONTROL, Interpreter, State, Values
from edgesparse_converters.coreml.operators import OPERATORS, CallError
from edgesparse_converters.coreml.operators.call import within_limits
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import Function, TensorType, operations

Precision = Literal["float32", "float16"]


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
        program = self.package.program
        name = function or program.default
        if name not in program.functions:
            raise UsageError(
                f"{self.package.path}: no function {name!r}; it has {', '.join(program.functions)}"
            )
        self.function: Function = program.functions[name]
        self._interpreter = Interpreter(self.package, self.function, half=precision == "float16")
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
            self._interpreter.run(self.function.block, values, states, types)
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
            self._refuse_out_of_bounds(name, array.shape)
            checked[name] = self._interpreter.narrow(
                torch.from_numpy(np.ascontiguousarray(array)), kind
            )
        return checked

    def _refuse_out_of_bounds(self, name: str, shape: tuple[int, ...]) -> None:
        bounds = self.package.program.ranges.get(name, ())
        for size, (low, high) in zip(shape, bounds, strict=False):
            if size < low or 0 <= high < size:
                raise UsageError(f"input {name!r} has shape {shape}, expected sizes of {bounds}")

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


def _known(kind: TensorType) -> tuple[int, ...]:
    sizes = tuple(size for size in kind.shape if size is not None)
    if len(sizes) != len(kind.shape):
        raise SourceError(f"a state of open shape {kind.shape}")
    try:
        within_limits(sizes)
    except CallError as error:
        raise SourceError(f"a state of shape {sizes}: {error}") from None
    return sizes
