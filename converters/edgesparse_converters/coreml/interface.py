"""The border of a package: which tensors go in and come out, under which names.

A captured module is called with keyword arguments, some of them no tensors, and returns whatever
its author liked. Core ML knows named tensors only: the tensors among the example inputs become
inputs under their own keywords, the other arguments are fixed, and every floating tensor of the
result becomes an output, named as the author named it where there is a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.errors import Unsupported, UsageError
from edgesparse.model import CapturedModel
from edgesparse.runtime.forward import token_key

INPUT_TYPES = (torch.float16, torch.float32, torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass
class Seen:
    """What the last call of a module returned.

    Attributes:
        kind: Name of the type of its result.
        outputs: Names of the floating tensors in it.
    """

    kind: str = ""
    outputs: list[str] = field(default_factory=list)


class Interface(nn.Module):
    """A module that takes named tensors and returns a tuple of floating tensors.

    Args:
        module: The module as its author wrote it.
        fixed: Arguments that are no tensors.
        names: Names of the tensors it takes, in order.
    """

    def __init__(self, module: nn.Module, fixed: Mapping[str, Any], names: Iterable[str]) -> None:
        super().__init__()
        self.module = module
        self.fixed = dict(fixed)
        self.seen = Seen()
        self.forward = _with_parameters(self._outputs, names)

    def _outputs(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the floating outputs, in order."""
        outputs = self.module(**inputs, **self.fixed)
        named = list(named_tensors(outputs))
        self.seen.kind, self.seen.outputs = type(outputs).__name__, [name for name, _ in named]
        return tuple(tensor for _, tensor in named)


def _with_parameters(
    function: Callable[..., tuple[Tensor, ...]], names: Iterable[str]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return ``function`` under a signature of its own: torch.export looks at nothing else.

    With ``**inputs`` it could trace fixed shapes, but not say which size of which input is open.
    """
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]

    def forward(*values: Tensor, **named: Tensor) -> tuple[Tensor, ...]:
        given = {p.name: value for p, value in zip(parameters, values, strict=False)}
        return function(**given, **named)

    forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return forward


def wrap(module: nn.Module, captured: CapturedModel) -> Interface:
    """Return ``module`` behind an interface Core ML can express."""
    inputs = captured.example_inputs
    tensors = [name for name, value in inputs.items() if isinstance(value, Tensor)]
    return Interface(module, {k: v for k, v in inputs.items() if k not in tensors}, tensors)


def tensor_inputs(captured: CapturedModel, *, tokens: int | None = None) -> dict[str, Tensor]:
    """Return the example inputs that are tensors, in order.

    Args:
        captured: The model.
        tokens: Length of a language model's input; None keeps the example's.

    Raises:
        Unsupported: None is a tensor, or one is of a type Core ML has no input for.
        UsageError: ``tokens`` for a model that takes none.
    """
    inputs = {k: v for k, v in captured.example_inputs.items() if isinstance(v, Tensor)}
    if tokens is not None:
        if captured.task != "causal-lm":
            raise UsageError(f"{captured.name} is no language model; leave tokens out")
        key = token_key(captured)
        inputs = {key: torch.arange(tokens)[None] % (int(inputs[key].max()) + 1)}
    wrong = [f"{k} ({v.dtype})" for k, v in inputs.items() if v.dtype not in INPUT_TYPES]
    if wrong or not inputs:
        raise Unsupported(
            f"{captured.name}: inputs {', '.join(wrong) or 'without a tensor'}; Core ML takes "
            "float16, float32, int32 and bool tensors: wrap the module and cast at its border"
        )
    return inputs


def output_names(module: Interface, inputs: Iterable[str]) -> tuple[str, ...]:
    """Return a name for every output of the last call, which may have been a trace.

    A name that an input or an earlier output has already gets ``_out`` and a number if need be.

    Raises:
        Unsupported: It returned no floating tensor.
    """
    taken, names = set(inputs), []
    for wanted in module.seen.outputs:
        name, number = wanted, 1
        while name in taken:
            name, number = f"{wanted}_out{number if number > 1 else ''}", number + 1
        taken.add(name)
        names.append(name)
    if not names:
        raise Unsupported(
            f"the model returns {module.seen.kind} without a floating tensor; Core ML needs at "
            "least one output"
        )
    return tuple(names)


def outputs_by_name(module: Interface, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run the module once and return its floating outputs under the names a package gives them.

    Raises:
        Unsupported: It returns no floating tensor.
    """
    with torch.no_grad():
        outputs = module(**inputs)
    return dict(zip(output_names(module, inputs), outputs, strict=True))


def named_tensors(outputs: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every floating tensor of a nested result with a name made of keys and positions."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield name or "output", outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from named_tensors(value, f"{name}_{key}" if name else str(key))
    elif isinstance(outputs, list | tuple):
        for index, value in enumerate(outputs):
            yield from named_tensors(value, f"{name or 'output'}_{index}")
