"""Cut units out of a module: the tensors become smaller, the module stays an ordinary one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from edgesparse.structured.groups import Group

# Attributes that state a size, by the module's class and the cut dimension of its weight.
_SIZES = {
    (nn.Linear, 0): "out_features", (nn.Linear, 1): "in_features",
    (nn.Embedding, 1): "embedding_dim",
    (nn.Conv1d, 0): "out_channels", (nn.Conv1d, 1): "in_channels",
    (nn.Conv2d, 0): "out_channels", (nn.Conv2d, 1): "in_channels",
    (nn.Conv3d, 0): "out_channels", (nn.Conv3d, 1): "in_channels",
    (nn.BatchNorm1d, 0): "num_features", (nn.BatchNorm2d, 0): "num_features",
    (nn.BatchNorm3d, 0): "num_features",
}  # fmt: skip

Kept = Mapping[tuple[str, int], Tensor]
"""For every cut dimension, (name, dim), the positions that stay, int64 ascending."""


def cut(module: nn.Module, keep: Mapping[Group, Tensor]) -> None:
    """Keep only the given units of each group, in place.

    Args:
        module: The module the groups were found in; change a copy of it.
        keep: For each group the units that stay, int64, ascending, at least one.
    """
    owners = {name: _owners(module, name) for name, _ in kept_positions(keep)}
    for (name, dim), positions in kept_positions(keep).items():
        part: Tensor | None = None
        for owner, leaf in owners[name]:
            whole = getattr(owner, leaf)
            if part is None:
                part = _part(whole, dim, positions)
            setattr(owner, leaf, part)
            if leaf in ("weight", "running_mean"):
                _state_size(owner, dim, len(positions))


def kept_positions(keep: Mapping[Group, Tensor]) -> Kept:
    """Return what stays of every dimension of every tensor."""
    kept: dict[tuple[str, int], Tensor] = {}
    for group, units in keep.items():
        assert 0 < len(units) <= group.size, "at least one unit stays"
        stays = torch.zeros(group.size + 1, dtype=torch.bool)
        stays[units] = True
        stays[-1] = True  # positions of no unit have the index -1
        for member, places in group.places.items():
            mask = stays[torch.from_numpy(places)]
            key = (member.name, member.dim)
            kept[key] = kept[key] & mask if key in kept else mask
    return {key: mask.nonzero().flatten() for key, mask in kept.items()}


def zero_removed(module: nn.Module, keep: Mapping[Group, Tensor]) -> None:
    """Hold the units that do not stay at zero where they are read, in place.

    What ``cut`` leaves computes the same, but where norms take means over the units.
    """
    for group, units in keep.items():
        gone = torch.ones(group.size + 1, dtype=torch.bool)
        gone[units] = False
        gone[-1] = False
        for member in group.readers:
            places = gone[torch.from_numpy(group.places[member])]
            module.get_parameter(member.name).data.movedim(member.dim, 0)[places] = 0


def kept_channels(scores: Tensor, count: int) -> Tensor:
    """Return the ``count`` units of the highest score, ascending; ties keep the first."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values


def restate_sizes(module: nn.Module, changes: Mapping[str, Mapping[int, int]]) -> None:
    """Change whole numbers that a module keeps about itself, in place.

    Args:
        module: The root.
        changes: Path of a module → old number → new number.
    """
    for path, numbers in changes.items():
        owner = module.get_submodule(path)
        for name, value in list(vars(owner).items()):
            if type(value) is int and value in numbers:
                setattr(owner, name, numbers[value])


def _owners(module: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Return every module that holds the tensor ``name``: several where it is tied."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(path), leaf)
    return [
        (owner, own)
        for owner in module.modules()
        for own, held in (*owner._parameters.items(), *owner._buffers.items())
        if held is tensor
    ]


def _part(whole: Tensor, dim: int, positions: Tensor) -> Tensor:
    part = whole.detach().index_select(dim, positions.to(whole.device)).contiguous()
    if isinstance(whole, nn.Parameter):
        return nn.Parameter(part, requires_grad=whole.requires_grad)
    return part


def _state_size(owner: nn.Module, dim: int, size: int) -> None:
    """Bring the attributes up to date that say how large the module is."""
    for (kind, of), name in _SIZES.items():
        if of == dim and isinstance(owner, kind):
            setattr(owner, name, size)
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        owner.normalized_shape = (size,)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) and owner.groups > 1:
        owner.groups = owner.in_channels = size  # depthwise: one group for each channel


def size_changes(
    module: nn.Module, keep: Mapping[Group, Tensor], *, units: bool
) -> dict[str, dict[int, int]]:
    """Return the numbers that the modules around the cut tensors may keep about them.

    Args:
        module: Before the cut.
        keep: As for ``cut``.
        units: Whether to count the number of units of a group among them, such as heads.
    """
    changes: dict[str, dict[int, int]] = {}
    kept = kept_positions(keep)
    for group, stays in keep.items():
        for member in group.members:
            whole = group.places[member].shape[0]
            numbers = {whole: len(kept[member.name, member.dim])}
            if units:
                numbers[group.size] = len(stays)
            if whole % 3 == 0:  # queries, keys and values in one matrix
                numbers[whole // 3] = len(kept[member.name, member.dim]) // 3
            for path in _around(member.name):
                for old, new in numbers.items():
                    if old != new:
                        changes.setdefault(path, {}).setdefault(old, new)
    return changes


def _around(name: str) -> Iterator[str]:
    """Yield the paths of the module that owns a tensor and of the one around it."""
    path = name.rpartition(".")[0]
    yield path
    yield path.rpartition(".")[0]
