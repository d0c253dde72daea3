"""Inputs an artifact takes, and what the packed model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from edgesparse_converters.executorch.function import function_of
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError, UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.runtime.modules import build_packed
from edgesparse.runtime.text import token_windows

Arrays = Mapping[str, NDArray[Any]]
Shapes = Mapping[str, tuple[int, ...]]


def input_shapes(inspected: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an artifact's inputs by name, in order, out of what it says of itself.

    Raises:
        SourceError: It does not say.
    """
    methods = inspected.get("methods") or inspected.get("functions") or {}
    called = methods.get(inspected.get("default_function", "forward"), {})
    tensors = called.get("inputs")
    if not tensors:
        raise SourceError("the artifact does not say which inputs it takes; export it again")
    return {str(tensor["name"]): tuple(int(n) for n in tensor["shape"]) for tensor in tensors}


def text_inputs(
    captured: CapturedModel, shapes: Shapes, text: str, *, count: int
) -> dict[str, Arrays]:
    """Return the first ``count`` windows of a text as the only input of a language model.

    Raises:
        UsageError: The artifact takes other than one batch of tokens.
        SourceError: Too little text.
    """
    if captured.task != "causal-lm" or len(shapes) != 1:
        raise UsageError(f"{captured.name}: text is for language models; give inputs instead")
    ((name, (batch, window)),) = shapes.items()
    rows = token_windows(captured, text, window=window, name="the text")
    if len(rows) < batch * count:
        raise SourceError(
            f"the text has {len(rows)} windows of {window} tokens, {count} cases need "
            f"{batch * count}; give a longer text or fewer cases"
        )
    return {f"text-{i}": {name: rows[i * batch : (i + 1) * batch].numpy()} for i in range(count)}


def draw_inputs(
    captured: CapturedModel, shapes: Shapes, *, count: int, seed: int
) -> dict[str, Arrays]:
    """Return random inputs: normal floats, integers of the range the example has.

    Raises:
        SourceError: The artifact takes an input the model's example does not have.
    """
    generator = np.random.default_rng(seed)
    unknown = [name for name in shapes if name not in captured.example_inputs]
    if unknown:
        raise SourceError(f"{captured.name}: no example of the inputs {', '.join(unknown)}")
    return {
        f"random-{i}": {
            name: _draw(generator, captured, captured.example_inputs[name], shape)
            for name, shape in shapes.items()
        }
        for i in range(count)
    }


def references(compressed: CompressedModel, inputs: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Return the outputs of the packed model by name, one mapping per input."""
    calls = [{k: torch.from_numpy(v.copy()) for k, v in arrays.items()} for arrays in inputs]
    function = function_of(compressed.captured, build_packed(compressed), calls[0])
    with torch.inference_mode():
        return [
            {
                name: value.numpy()
                for name, value in zip(function.outputs, function(**call), strict=True)
            }
            for call in calls
        ]


def _draw(
    generator: np.random.Generator, captured: CapturedModel, example: Any, shape: tuple[int, ...]
) -> NDArray[Any]:
    if not isinstance(example, Tensor):
        raise SourceError(f"{captured.name}: an example input is {type(example).__name__}")
    dtype = example.numpy().dtype
    if example.is_floating_point():
        return generator.standard_normal(shape).astype(dtype)
    vocabulary = captured.config.get("vocab_size")
    is_text = captured.task == "causal-lm" and isinstance(vocabulary, int)
    limit = vocabulary if is_text else int(example.max()) + 1
    return generator.integers(0, limit, shape).astype(dtype)
