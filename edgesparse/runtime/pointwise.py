"""A 1x1 convolution is a linear layer at every place."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a convolution whose every output sees one place, and all its channels."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and set(module.kernel_size) == {1}
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
