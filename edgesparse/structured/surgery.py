"""Cut channels out of a module: the tensors become smaller, the module stays an ordinary one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgesparse.structured.groups import Group

# Attributes that state a size, by the module's class and the cut dimension of its weight.
_SIZES = {
    (nn.Linear, 0): "out_features", (nn.Linear, 1): "in_features",
    (nn.Conv1d, 0): "out_channels", (nn.Conv1d, 1): "in_channels",
    (nn.Conv2d, 0): "out_channels", (nn.Conv2d, 1): "in_channels",
    (nn.Conv3d, 0): "out_channels", (nn.Conv3d, 1): "in_channels",
    (nn.BatchNorm1d, 0): "num_features", (nn.BatchNorm2d, 0): "num_features",
    (nn.BatchNorm3d, 0): "num_features",
}  # fmt: skip


def cut(module: nn.Module, keep: Mapping[Group, Tensor]) -> None:
    """Keep only the given channels of each group, in place.

    Args:
        module: The module the groups were found in; change a copy of it.
        keep: For each group the channels that stay, int64, ascending, at least one.
    """
    for group, channels in keep.items():
        assert 0 < len(channels) <= group.size, "at least one channel stays"
        for member in group.members:
            path, _, leaf = member.name.rpartition(".")
            owner = module.get_submodule(path)
            _cut_tensor(owner, leaf, member.dim, channels)
            if leaf in ("weight", "running_mean"):
                _state_size(owner, member.dim, len(channels))


def _cut_tensor(owner: nn.Module, leaf: str, dim: int, channels: Tensor) -> None:
    whole = getattr(owner, leaf)
    part = whole.detach().index_select(dim, channels.to(whole.device)).contiguous()
    if isinstance(whole, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(part, requires_grad=whole.requires_grad))
    else:
        setattr(owner, leaf, part)


def _state_size(owner: nn.Module, dim: int, size: int) -> None:
    """Bring the attributes up to date that say how large the module is."""
    for (kind, of), name in _SIZES.items():
        if of == dim and isinstance(owner, kind):
            setattr(owner, name, size)
    if hasattr(owner, "nx") and hasattr(owner, "nf"):  # transformers' Conv1D, weight [in, out]
        setattr(owner, ("nx", "nf")[dim], size)
    if isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d) and owner.groups > 1:
        owner.groups = owner.in_channels = size  # depthwise: one group for each channel


def kept_channels(scores: Tensor, count: int) -> Tensor:
    """Return the ``count`` channels of the highest score, ascending; ties keep the first."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order[:count].sort().values
