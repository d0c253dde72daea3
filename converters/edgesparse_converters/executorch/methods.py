"""The methods of a program: the modules that are traced, and what they are traced on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.model import CapturedModel
from edgesparse_converters.executorch.cached import Cached, check_context, runner_constants
from edgesparse_converters.executorch.function import example_tensors, function_of


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method before it is traced.

    Attributes:
        module: Its computation.
        inputs: Tensors by name, of the shapes it will have.
        outputs: Names of its outputs, in order.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def plain_methods(
    captured: CapturedModel, module: nn.Module, tokens: int | None
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return the one method ``forward`` and no constants.

    Raises:
        UsageError: ``tokens`` for a model that takes none.
    """
    inputs = example_tensors(captured, tokens=tokens)
    function = function_of(captured, module, inputs)
    return {"forward": Method(module=function, inputs=inputs, outputs=function.outputs)}, {}


def cached_methods(
    captured: CapturedModel,
    module: nn.Module,
    context: int,
    prefill: int,
    *,
    cache: str,
    stock: bool,
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return ``forward`` for one token and ``prefill`` for several, and the runner's constants.

    Raises:
        UsageError: Lengths out of range, or no language model.
        Unsupported: A kind of cache without a fixed form, or one the model cannot have.
    """
    check_context(captured, context, prefill)
    module.requires_grad_(False)
    methods = {
        name: Method(
            module=Cached(module, context, cache=cache, stock=stock),
            inputs={
                "input_ids": torch.zeros(1, length, dtype=torch.long),
                "position": torch.zeros(1, dtype=torch.long),
            },
            outputs=("logits",),
        )
        for name, length in (("forward", 1), ("prefill", prefill))
    }
    return methods, runner_constants(captured, context)
