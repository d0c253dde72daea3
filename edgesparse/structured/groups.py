"""Which dimensions of which tensors must be cut together, found from the traced graph.

The outputs of a linear layer or convolution are followed through the graph along their channel
axis. Operations that treat every channel alone (activations, sums, products, batch norm, pooling,
depthwise convolutions) pass it on; a linear layer or convolution that reads it ends it. All tensors
met on the way form a group: cutting the same indices in each of them computes what the whole
computes with those channels held at zero where they are read. A group whose channels reach anything
else (a normalization over channels, a split into heads, the output) cannot be cut alone and is left
out. After the dependency graph of Fang et al. 2023 (DepGraph, arXiv 2301.12900).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import nn

from edgesparse.model import CapturedModel
from edgesparse.structured.follow import Follower


@dataclass(frozen=True, order=True)
class Member:
    """One dimension of one tensor.

    Attributes:
        name: Name in the state dict.
        dim: The dimension.
        reads: Whether the tensor reads the channels (a consumer) rather than makes them.
    """

    name: str
    dim: int
    reads: bool


@dataclass(frozen=True)
class Group:
    """Channels that can be cut, and everything that has them.

    Attributes:
        size: Number of channels.
        members: Every tensor dimension that has them, at least one that makes and one that reads.
    """

    size: int
    members: tuple[Member, ...]

    @property
    def readers(self) -> tuple[Member, ...]:
        """The members that read the channels."""
        return tuple(member for member in self.members if member.reads)


def find_groups(captured: CapturedModel, module: nn.Module | None = None) -> tuple[Group, ...]:
    """Return every group of channels that can be cut without changing anything else.

    Args:
        captured: The model; its example inputs are traced.
        module: A module of it, loaded; None loads one.

    Raises:
        SourceError: The weights cannot be read.
    """
    module = captured.loader().float() if module is None else module
    inputs = dict(captured.example_inputs)
    if "use_cache" in inspect.signature(module.forward).parameters:
        inputs["use_cache"] = False  # a cache among the outputs is no tensor to trace
    with torch.no_grad():
        program = torch.export.export(module, (), inputs, strict=False)
    follower = Follower(program)
    groups = []
    for size, members in follower.run():
        found = tuple(sorted(Member(name, dim, reads) for name, dim, reads in members))
        if any(member.reads for member in found) and not all(member.reads for member in found):
            groups.append(Group(size, found))
    return tuple(groups)
