"""A training spread over the processes of a team with FSDP2: weights, gradients and moments.

Every process holds one part of each trained tensor, of its gradient and of the optimizer's moments,
and the same part of the dense teacher. A block's tensors come together while the block runs and
come apart behind it; for the backward pass the block runs again, so that what its weights were
rounded from is never there for more than one block. Masks are whole everywhere, one byte a weight.
(Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277; checkpoints: Chen et al. 2016, arXiv 1604.06174.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from edgesparse.calibrate.residence import outermost_blocks
from edgesparse.calibrate.team import Team
from edgesparse.errors import UsageError
from edgesparse.runtime.bind import bind


class Trained(nn.Module):
    """Stands for a weight that a module computes when it is read; see ``runtime.bind``."""

    def __init__(self, latent: nn.Module) -> None:
        super().__init__()
        self.latent = latent

    def weight(self) -> Tensor:
        """Return the weight as it would be shipped."""
        value: Tensor = self.latent()
        return value

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``."""
        return nn.functional.linear(x, self.weight(), bias)

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices`` of the weight."""
        return nn.functional.embedding(indices, self.weight())


def put_in(model: nn.Module, latents: Iterable[tuple[tuple[str, ...], nn.Module]]) -> None:
    """Let the modules of ``model`` compute their weights: (names of a tensor, latent) each.

    Raises:
        UsageError: A weight of several blocks: it would be apart where another block needs it.
    """
    blocks = {id(m): i for i, b in enumerate(outermost_blocks(model)) for m in b.modules()}
    for names, latent in latents:
        payload, places = Trained(latent), {}
        for name in names:
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            places[id(owner), leaf] = owner
        if len({blocks.get(id(owner), -1) for owner in places.values()}) > 1:
            raise UsageError(
                f"{names[0]} is the weight of several blocks ({', '.join(names)}); such a model is "
                "recovered by one process"
            )
        for (_, leaf), owner in places.items():
            bind(owner, leaf, payload)


def shard(model: nn.Module, team: Team, device: torch.device, *, trains: bool) -> None:
    """Share ``model`` out over the team and move it to ``device``, block by block, in place.

    Args:
        model: On the CPU, whole and alike in every process.
        team: The processes; collective, all have to call it.
        device: This process's.
        trains: Whether there will be a backward pass.
    """
    mesh = init_device_mesh(device.type, (team.size,))
    for block in outermost_blocks(model):
        if trains:
            block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
        _fully_shard(block, mesh)
    _fully_shard(model, mesh)


def _fully_shard(module: nn.Module, mesh: Any) -> None:
    # Float16 values have no scales: nothing to share out.
    empty = {p for p in module.parameters() if not p.numel()}
    fully_shard(module, mesh=mesh, ignored_params=empty)


def whole(value: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes; collective where it has any."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_module(module: nn.Module) -> nn.Module:
    """Return a copy of a module without children whose parameters are whole; buffers are shared."""
    copied = copy.copy(module)
    copied.__dict__["_parameters"] = {
        name: None if value is None else nn.Parameter(whole(value.detach()), requires_grad=False)
        for name, value in module._parameters.items()
    }
    return copied


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole ``value``, on the device and in the parts of ``like``.

    No process asks another: all have the whole.
    """
    if not isinstance(like, DTensor):
        return value.to(like.device)
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def parts_of(values: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``part_of`` every value, by name."""
    return {name: part_of(value, like[name]) for name, value in values.items()}


def mean_of(team: Team, values: Tensor) -> Tensor:
    """Return the mean of ``values`` over all processes, the same bits in each."""
    team.add_up(values)
    return values / team.size
