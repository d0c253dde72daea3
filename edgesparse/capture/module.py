"""Capture an ``nn.Module`` of this process, with example inputs of a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from edgesparse.capture.conform import Conformed, conform
from edgesparse.capture.describe import describe
from edgesparse.capture.probe import uncalled_modules
from edgesparse.capture.structure import copy_structure
from edgesparse.errors import SourceError, UsageError
from edgesparse.model import CapturedModel, Source

ExampleInputs = Mapping[str, Any] | tuple[Any, ...] | torch.Tensor


def capture_module(
    module: nn.Module,
    example_inputs: ExampleInputs,
    *,
    source: Source | None = None,
    bypassed: frozenset[str] = frozenset(),
    probe: bool = True,
) -> CapturedModel:
    """Capture ``module``, which is neither changed nor run on its weights.

    Args:
        module: Any module on the CPU.
        example_inputs: Arguments of a forward pass: by name, by position, or the only one.
        source: Where it came from; None says from this process.
        bypassed: Paths of layers whose weights are read by others too.
        probe: Run a forward pass on the meta device to find layers that are never called.

    Raises:
        SourceError: A tensor that cannot be captured, or example inputs that do not fit.
    """
    inputs = keyword_inputs(module, example_inputs)
    bare = copy_structure(module)
    conformed = conform(bare)
    uncalled = uncalled_modules(bare, inputs) if probe else frozenset()
    tensors = describe(bare, uncalled=uncalled, bypassed=bypassed)
    return CapturedModel(
        source=source or Source(kind="module", location=type(module).__qualname__),
        tensors=tensors,
        example_inputs=inputs,
        skeleton=lambda: _skeleton(module),
        weights=lambda: _ModuleWeights(module, [t.name for t in tensors], conformed),
    )


def keyword_inputs(module: nn.Module, example_inputs: ExampleInputs) -> dict[str, Any]:
    """Return the example inputs by the names ``module.forward`` gives them.

    Raises:
        SourceError: They do not fit the signature, or it takes a variable number of them.
    """
    signature = inspect.signature(module.forward)
    named = example_inputs if isinstance(example_inputs, Mapping) else {}
    positional: tuple[Any, ...] = ()
    if not isinstance(example_inputs, Mapping):
        positional = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        bound = signature.bind(*positional, **named)
    except TypeError as error:
        raise SourceError(
            f"example inputs do not fit {type(module).__name__}.forward{signature}: {error}"
        ) from None
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(value)
        elif kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise SourceError(
                f"{type(module).__name__}.forward takes {name!r} by position only; wrap it in a "
                "module whose inputs have names"
            )
        else:
            inputs[name] = value
    return inputs


def _skeleton(module: nn.Module) -> nn.Module:
    bare = copy_structure(module)
    conform(bare)
    return bare


class _ModuleWeights(Mapping[str, torch.Tensor]):
    """The tensors of a module of this process: each a copy, made when it is asked for."""

    def __init__(self, module: nn.Module, names: list[str], conformed: Conformed) -> None:
        self._state = module.state_dict()
        self._names = names
        self._conformed = conformed

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._state[self._conformed.original(name)]
        if tensor.is_meta:
            raise SourceError(f"{name} is on the meta device: it has no value to read")
        view = self._conformed.take(name, tensor)
        return view.detach().clone(memory_format=torch.contiguous_format)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def require_inputs(example_inputs: ExampleInputs | None) -> ExampleInputs:
    """Return ``example_inputs``.

    Raises:
        UsageError: There are none.
    """
    if example_inputs is None:
        raise UsageError(
            "an nn.Module needs example inputs: load(module, example_inputs={'x': torch.zeros(1, "
            "8)})"
        )
    return example_inputs
