"""A captured model as a plain function of tensors: named inputs in, a tuple of tensors out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgesparse.errors import SourceError, UsageError
from edgesparse.model import CapturedModel
from edgesparse.runtime.forward import token_key


class Function(nn.Module):
    """A module whose options are fixed and whose outputs are a flat tuple.

    Args:
        model: The module.
        options: Keyword arguments that are no tensors.
        outputs: Names of the outputs that are returned, as ``named_outputs`` gives them.
    """

    def __init__(
        self, model: nn.Module, options: Mapping[str, Any], outputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.model, self.options, self.outputs = model, dict(options), outputs

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen outputs, in order."""
        found = dict(named_outputs(self.model(**inputs, **self.options)))
        return tuple(found[name] for name in self.outputs)


def options_of(captured: CapturedModel) -> dict[str, Any]:
    """Return the fixed keyword arguments; a language model is exported without a cache."""
    options = {k: v for k, v in captured.example_inputs.items() if not isinstance(v, Tensor)}
    if captured.task == "causal-lm" and captured.source.kind == "huggingface":
        options["use_cache"] = False
    return options


def example_tensors(captured: CapturedModel, *, tokens: int | None = None) -> dict[str, Tensor]:
    """Return the tensors on which the graph is traced, contiguous, by name.

    Args:
        captured: The model.
        tokens: Length of a language model's input; None takes the example's.

    Raises:
        UsageError: ``tokens`` for a model that takes none, or not positive.
    """
    given = {k: v for k, v in captured.example_inputs.items() if isinstance(v, Tensor)}
    if tokens is not None and (captured.task != "causal-lm" or tokens < 1):
        raise UsageError(f"tokens={tokens}: a positive length, and only for a language model")
    if captured.task == "causal-lm":
        key = token_key(captured)
        batch, length = given[key].shape
        given = {key: torch.zeros(batch, tokens or length, dtype=torch.long)}
    # A channels-last tensor would be read as if it were contiguous.
    return {name: value.contiguous() for name, value in given.items()}


def function_of(
    captured: CapturedModel, model: nn.Module, inputs: Mapping[str, Tensor]
) -> Function:
    """Return ``model`` as a function, its outputs found by running it once, without numbers.

    Raises:
        SourceError: It returns no tensor.
    """
    options = options_of(captured)
    found = [name for name, _ in named_outputs(_run_once(model, {**inputs, **options}))]
    if captured.task == "causal-lm" and "logits" in found:
        found = ["logits"]
    if not found:
        raise SourceError(f"{captured.name}: the model returns no tensor; nothing to export")
    return Function(model, options, tuple(found))


def _run_once(model: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Return outputs of the right names and shapes; computed only if the model looks at values."""
    with torch.no_grad():
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                return model(**arguments)
        except Exception:  # whatever its own code raises where it wanted a number
            return model(**arguments)


def named_outputs(value: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a nested output with a name: its key, or its place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_outputs(item, str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from named_outputs(item, f"{name}_{i}")
