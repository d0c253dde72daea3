"""Convolutions whose windows do not overlap are linear layers.

A 1x1 convolution is one at every place. One whose kernel is its stride, as models of pictures cut
them into patches with, is one at every patch: no number of its input is copied twice.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TypeGuard

from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d


def is_pointwise(module: nn.Module) -> TypeGuard[Convolution]:
    """Whether a module is a convolution whose every output sees one place, and all its channels."""
    return _is_bare(module) and set(module.kernel_size) == {1}


def is_patchwise(module: nn.Module) -> TypeGuard[Convolution]:
    """Whether a module is a convolution, not 1x1, that sees patches side by side, all channels."""
    return (
        _is_bare(module)
        and set(module.kernel_size) != {1}
        and tuple(module.kernel_size) == tuple(module.stride)
        and set(module.dilation) == {1}
    )


def _is_bare(module: nn.Module) -> TypeGuard[Convolution]:
    return (
        isinstance(module, Convolution)
        and (module.padding == "valid" or set(module.padding) == {0})
        and module.groups == 1
    )


def at_every_place(
    linear: Callable[[Tensor], Tensor], x: Tensor, stride: tuple[int, ...]
) -> Tensor:
    """Return ``linear`` of the channels at every ``stride``-th place.

    Args:
        linear: Takes ``[..., inputs]``, returns ``[..., outputs]``.
        x: ``[B, inputs, ...]`` or ``[inputs, ...]``, with a dimension for each of ``stride``.
        stride: Steps along each dimension after the channels.
    """
    for dim, step in enumerate(stride, start=x.ndim - len(stride)):
        if step > 1:
            x = x[(slice(None),) * dim + (slice(None, None, step),)]
    channels = -1 - len(stride)
    return linear(x.movedim(channels, -1)).movedim(-1, channels)


def at_every_patch(
    linear: Callable[[Tensor], Tensor], x: Tensor, kernel: tuple[int, ...]
) -> Tensor:
    """Return ``linear`` of every whole patch; what is left at the far edges is not looked at.

    Args:
        linear: Takes ``[..., inputs * prod(kernel)]``, a weight ``[outputs, inputs, *kernel]``
            seen as a matrix; returns ``[..., outputs]``.
        x: ``[B, inputs, ...]`` or ``[inputs, ...]``, with a dimension for each of ``kernel``.
        kernel: Size of a patch along each dimension after the channels.
    """
    first = x.ndim - len(kernel)  # of the dimensions with places; channels are before it
    counts = [size // step for size, step in zip(x.shape[first:], kernel, strict=True)]
    for dim, (count, step) in enumerate(zip(counts, kernel, strict=True), start=first):
        x = x.narrow(dim, 0, count * step)
    x = x.reshape(*x.shape[:first], *chain(*zip(counts, kernel, strict=True)))
    patches, within = range(first, x.ndim, 2), range(first + 1, x.ndim, 2)
    x = x.permute(*range(first - 1), *patches, first - 1, *within)
    return linear(x.flatten(-1 - len(kernel))).movedim(-1, first - 1)
