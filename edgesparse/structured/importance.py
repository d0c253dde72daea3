"""How much every unit of a group matters, three ways.

magnitude   |W| of everything that belongs to the unit; needs no inputs
wanda       what readers make of the unit: |x_i| · |W[:, i]| (Sun et al. 2023, arXiv 2306.11695,
            of whole columns), summed over the readers
taylor      (Σ g·w)² over all weights of the unit, summed over batches: the first-order change
            of the loss without it (Molchanov et al. 2019, arXiv 1906.10771)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.errors import CalibrationError
from edgesparse.runtime.forward import first_tensor
from edgesparse.structured.groups import Group
from edgesparse.structured.observing import Batches, observe

METHODS = ("wanda", "taylor", "magnitude")


def magnitude(module: nn.Module, group: Group) -> Tensor:
    """Return the norm of every unit's weights, float32 [units]."""
    total = torch.zeros(group.size)
    for member in group.members:
        energy = _by_position(_tensor(module, member.name).square(), member.dim)
        total += _by_unit(group, member, energy)
    return total.sqrt()


def wanda(module: nn.Module, group: Group, moments: Mapping[str, Tensor]) -> Tensor:
    """Return what the readers make of every unit, float32 [units].

    Args:
        module: The module.
        group: One of its groups.
        moments: ``second_moments``; a reader without any counts its inputs alike.
    """
    score = torch.zeros(group.size)
    for reader in group.readers:
        weight = _tensor(module, reader.name)
        column = _by_position(weight.square(), reader.dim)
        if reader.name in moments:
            column = column * moments[reader.name].diagonal()
        score += _by_unit(group, reader, column).sqrt()
    return score


def taylor(
    module: nn.Module, groups: Sequence[Group], batches: Batches, *, language_model: bool
) -> list[Tensor]:
    """Return the squared first-order change of the loss for every unit of every group.

    The loss is the cross entropy of the next token for language models, else half the squared
    norm of the main output.
    """
    names = sorted({member.name for group in groups for member in group.members})
    scores = [torch.zeros(group.size) for group in groups]
    parameters = {n: p for n, p in module.named_parameters() if n in set(names)}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        for batch in batches:
            loss = _loss(first_tensor(module(**batch)), batch, language_model=language_model)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            products = {
                name: parameter.detach() * gradient
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
                if gradient is not None
            }
            for group, score in zip(groups, scores, strict=True):
                score += _first_order(group, products).square()
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    return scores


def second_moments(
    module: nn.Module, groups: Sequence[Group], batches: Batches
) -> dict[str, Tensor]:
    """Return XᵀX of the inputs of every linear reader, by the name of its weight.

    Raises:
        CalibrationError: Inputs that are not finite.
    """
    moments: dict[str, Tensor] = {}
    hooks = []
    for reader in {reader for group in groups for reader in group.readers}:
        layer = module.get_submodule(reader.name.rpartition(".")[0])
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(_adder(moments, reader.name)))
    observe(module, batches, hooks)
    for name, moment in moments.items():
        if not bool(torch.isfinite(moment).all()):
            raise CalibrationError(
                f"{name}: its inputs are NaN or infinite on the calibration data"
            )
    return moments


def _adder(moments: dict[str, Tensor], name: str) -> Any:
    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        moments[name] = moments.get(name, torch.zeros(())) + x.T @ x

    return add


def _first_order(group: Group, products: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.size)
    for member in group.members:
        if member.name in products:
            by_position = _by_position(products[member.name], member.dim)
            total += _by_unit(group, member, by_position)
    return total


def _by_position(values: Tensor, dim: int) -> Tensor:
    """Sum over all other dimensions."""
    return values.movedim(dim, 0).reshape(values.shape[dim], -1).sum(dim=1)


def _by_unit(group: Group, member: Any, by_position: Tensor) -> Tensor:
    """Sum what positions have over the units they belong to."""
    places = torch.from_numpy(group.places[member])
    within = places >= 0
    return torch.zeros(group.size).index_add_(0, places[within], by_position[within].float())


def _tensor(module: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), leaf)
    return tensor.detach().float()


def _loss(output: Tensor, batch: Mapping[str, Any], *, language_model: bool) -> Tensor:
    tokens = next((v for v in batch.values() if isinstance(v, Tensor) and v.dim() == 2), None)
    if language_model and tokens is not None:
        logits = output[:, :-1].flatten(0, 1).float()
        return functional.cross_entropy(logits, tokens[:, 1:].flatten())
    return output.float().square().sum() / 2
