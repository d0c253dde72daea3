"""Call a module whose signature is known only from its example inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.errors import SourceError
from edgesparse.model import CapturedModel


def token_key(captured: CapturedModel) -> str:
    """Return the keyword under which a language model takes its tokens.

    Raises:
        SourceError: No example input is a batch of integer tokens.
    """
    if "input_ids" in captured.example_inputs:
        return "input_ids"
    for key, value in captured.example_inputs.items():
        if isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point():
            return key
    raise SourceError(f"{captured.name}: no example input is a batch of tokens; give inputs")


def logits(module: nn.Module, captured: CapturedModel, tokens: Tensor) -> Tensor:
    """Return next-token logits in float32, shape (batch, tokens, vocabulary).

    Options among the example inputs are passed on; other example tensors, made for another
    length, are not.
    """
    options = {k: v for k, v in captured.example_inputs.items() if not isinstance(v, Tensor)}
    with torch.inference_mode():
        output = module(**{**options, token_key(captured): tokens})
    return first_tensor(output).float()


def first_tensor(output: Any) -> Tensor:
    """Return the logits of an output object, else its first floating tensor.

    Raises:
        SourceError: There is none.
    """
    found = getattr(output, "logits", None)
    if found is None:
        found = next(floating_tensors(output), None)
    if not isinstance(found, Tensor):
        raise SourceError(f"the model returned {type(output).__name__} without a floating tensor")
    return found


def floating_tensors(output: Any) -> Iterator[Tensor]:
    """Yield every floating tensor of a nested output, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from floating_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from floating_tensors(value)
