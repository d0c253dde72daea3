"""Remove whole layers: those that change their input's direction least.

A layer's influence is ``1 - cos(input, output)``, averaged over the calibration tokens (Men et al.
2024, ShortGPT, arXiv 2403.03853). Which modules are layers is seen from how they run: a chain of
blocks of which each takes what the one before it returned (``calibrate.record.Chain``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.calibrate.record import find_chain, record
from edgesparse.errors import UsageError
from edgesparse.structured.observing import Batches, observe


def drop_layers(module: nn.Module, batches: Batches, count: int) -> tuple[int, ...]:
    """Remove the ``count`` layers of least influence, in place.

    Args:
        module: The module.
        batches: Keyword arguments of forward passes.
        count: How many go; at least one layer stays.

    Returns:
        The indices of the layers removed, ascending.

    Raises:
        UsageError: The module has no chain of layers, or too few.
    """
    blocks = layers_of(module, batches[0])
    if count >= len(blocks):
        raise UsageError(f"{count} layers were to go and there are {len(blocks)}; one must stay")
    influence = layer_influence(module, blocks, batches)
    gone = sorted(torch.argsort(influence, stable=True)[:count].tolist())
    path = blocks[0].rpartition(".")[0]
    owner = module.get_submodule(path)
    kept = [child for i, child in enumerate(owner.children()) if i not in gone]
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, type(owner)(*_as_arguments(owner, kept)))
    _renumber(kept)
    return tuple(gone)


def layers_of(module: nn.Module, batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of the layers, in running order.

    Raises:
        UsageError: There is no chain of layers.
    """
    linears = [path for path, child in module.named_modules() if isinstance(child, nn.Linear)]
    with torch.no_grad():
        chain = find_chain(module, record(module, batch, linears, torch.device("cpu")), linears)
    if chain is None:
        raise UsageError(
            "the model has no layers that can be removed: a list of modules of which each takes "
            "what the one before it returned, unchanged"
        )
    return chain.blocks


def layer_influence(module: nn.Module, blocks: Sequence[str], batches: Batches) -> Tensor:
    """Return ``1 - cos(input, output)`` of every layer, averaged over positions, [layers]."""
    sums, counts = torch.zeros(len(blocks)), torch.zeros(len(blocks))

    def hook_of(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
            after = out[0] if isinstance(out, tuple) else out
            given = [*args, *kwargs.values()]
            before = next(v for v in given if isinstance(v, Tensor) and v.shape == after.shape)
            cosine = functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[index] += (1 - cosine).sum()
            counts[index] += cosine.numel()

        return hook

    hooks = [
        module.get_submodule(path).register_forward_hook(hook_of(i), with_kwargs=True)
        for i, path in enumerate(blocks)
    ]
    observe(module, batches, hooks)
    return sums / counts.clamp_min(1)


def _as_arguments(owner: nn.Module, kept: list[nn.Module]) -> list[Any]:
    """Return what builds a list like ``owner`` of other children."""
    return [kept] if isinstance(owner, nn.ModuleList) else kept


def _renumber(layers: Sequence[nn.Module]) -> None:
    """Give the layers' modules, which find their part of a cache by it, their new place."""
    for index, layer in enumerate(layers):
        for child in layer.modules():
            if type(getattr(child, "layer_idx", None)) is int:
                child.layer_idx = index  # type: ignore[assignment]  # a plain attribute
