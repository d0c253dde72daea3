"""Which dimensions of which tensors must be cut together, found from the traced graph.

The positions along every axis of every parameter are followed through the graph (``follow.py``).
Operations that treat positions alike pass them on and join what meets: activations, sums, products,
batch norm, pooling, depthwise convolutions, the split into attention heads. A product sums over
them. Positions that always go together make a *unit*: a neuron, a channel, an attention head with
what shares its keys, a channel of the residual stream with its place in every layer. Units that
live in the same tensors form a group: cutting some of them computes what the whole computes with
those units held at zero where they are read. Units that reach anything else (a softmax, the output)
cannot be cut and are left out. After the dependency graph of Fang et al. 2023 (DepGraph, arXiv
2301.12900).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgesparse.model import CapturedModel
from edgesparse.structured.follow import Follower


class Part(StrEnum):
    """What a group's units are."""

    CHANNELS = "channels"  # feed-forward neurons, channels of convolutions
    HEADS = "heads"  # attention heads with what shares their keys
    WIDTH = "width"  # channels of a residual stream through norms


@dataclass(frozen=True, order=True)
class Member:
    """One dimension of one tensor.

    Attributes:
        name: Name in the state dict.
        dim: The dimension.
        reads: Whether the tensor reads the units (a consumer) rather than makes them.
    """

    name: str
    dim: int
    reads: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be cut, and everything that has them.

    Attributes:
        size: Number of units.
        part: What they are. Cutting ``WIDTH`` changes the means that norms take, so it equals
            zeroed units only in what those means leave alone.
        places: For every member the unit of each position, int64; -1 for positions of no unit.
    """

    size: int
    part: Part
    places: Mapping[Member, NDArray[np.int64]]

    @property
    def members(self) -> tuple[Member, ...]:
        """Every tensor dimension that has the units."""
        return tuple(self.places)

    @property
    def readers(self) -> tuple[Member, ...]:
        """The members that read the units."""
        return tuple(member for member in self.members if member.reads)


def find_groups(captured: CapturedModel, module: nn.Module | None = None) -> tuple[Group, ...]:
    """Return every group of units that can be cut without changing anything else.

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
    return tuple(_groups(Follower(program)))


def _groups(follower: Follower) -> Iterator[Group]:
    """Yield the groups in the order of their first tensors."""
    labels = follower.labels
    attention, normalized = labels.marked("attention"), labels.marked("normalized")
    places = {
        (name, dim): labels.roots(axis)
        for name, axes in follower.axes.items()
        for dim, axis in enumerate(axes)
    }
    for signature, roots in _alike(places, labels.marked("closed")).items():
        reads = [member in follower.reads for member in signature]
        if len(roots) < 2 or all(reads) or not any(reads):
            continue
        part = Part.HEADS if roots[0] in attention else Part.CHANNELS
        part = Part.WIDTH if roots[0] in normalized else part
        unit = {root: i for i, root in enumerate(roots)}
        members = {
            Member(name, dim, reading): np.array(
                [unit.get(root, -1) for root in places[name, dim].tolist()], np.int64
            )
            for (name, dim), reading in zip(signature, reads, strict=True)
        }
        yield Group(len(roots), part, dict(sorted(members.items())))


def _alike(
    places: Mapping[tuple[str, int], NDArray[np.int64]], closed: frozenset[int]
) -> dict[tuple[tuple[str, int], ...], list[int]]:
    """Return the roots that have positions in the same members, by these members."""
    counts: dict[int, dict[tuple[str, int], int]] = {}
    for member, roots in places.items():
        found, numbers = np.unique(roots, return_counts=True)
        for root, number in zip(found.tolist(), numbers.tolist(), strict=True):
            if root not in closed:
                counts.setdefault(root, {})[member] = number
    alike: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = {}
    for root, of in counts.items():
        alike.setdefault(tuple(of.items()), []).append(root)
    return {tuple(member for member, _ in key): roots for key, roots in alike.items()}
