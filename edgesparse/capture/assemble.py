"""Put weights into a skeleton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgesparse.errors import SourceError

if TYPE_CHECKING:
    from edgesparse.model import CapturedModel


def assemble(captured: CapturedModel) -> nn.Module:
    """Return a fresh module of ``captured`` with its weights; see ``CapturedModel.loader``."""
    module = captured.skeleton()
    weights = captured.weights()
    for tensor in captured.tensors:
        place(module, (tensor.name, *tensor.aliases), weights[tensor.name])
    return module.eval()


def place(module: nn.Module, names: tuple[str, ...], value: torch.Tensor) -> None:
    """Set ``value`` under all ``names``, as one parameter or buffer.

    Raises:
        SourceError: The module has no such tensor, or one of another shape.
    """
    parameter = nn.Parameter(value, requires_grad=False)
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        places: Mapping[str, torch.Tensor | None] = {**owner._parameters, **owner._buffers}
        expected = places.get(leaf)
        if expected is None or expected.shape != value.shape:
            found = "no such tensor" if expected is None else f"shape {tuple(expected.shape)}"
            raise SourceError(
                f"{name}: the weights have shape {tuple(value.shape)}, the module has {found}; "
                "weights and configuration do not belong together"
            )
        # setattr rather than the dictionary: recurrent modules keep a second list of weights.
        setattr(owner, leaf, parameter if leaf in owner._parameters else value)
