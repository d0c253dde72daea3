"""What operations without parameters do to labelled axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import Node

from edgesparse.structured import reshaping
from edgesparse.structured.labels import Axis
from edgesparse.structured.nodes import arguments_of, operator_of, shape_of
from edgesparse.structured.reshaping import Axes

if TYPE_CHECKING:
    from edgesparse.structured.follow import Follower

Handler = Callable[["Follower", Node], Axes]

# Each output element depends on the elements of the inputs at the same place.
_POINTWISE = {
    "add", "sub", "rsub", "mul", "div", "relu", "relu6", "gelu", "silu", "sigmoid", "tanh",
    "hardswish", "hardtanh", "hardsigmoid", "leaky_relu", "elu", "clamp", "clamp_min", "clamp_max",
    "pow", "neg", "abs", "exp", "log", "softplus", "mish", "dropout", "clone", "contiguous", "to",
    "_to_copy", "alias", "detach", "square", "sqrt", "rsqrt", "reciprocal", "feature_dropout",
    "where", "minimum", "maximum", "zeros_like", "ones_like", "full_like", "type_as",
    "lift_fresh_copy", "erf", "sin", "cos", "masked_fill",
}  # fmt: skip
# Works on the axes after the channels of [N, C, …], each channel alone.
_POOLING = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
}  # fmt: skip
_RESHAPE = {"view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze", "unflatten"}
_REDUCE = {"mean", "sum", "amax", "amin", "var", "var_mean", "norm"}


def pointwise(follower: Follower, node: Node) -> Axes:
    """Join what meets; an axis of one position is the same for all."""
    shape = shape_of(node)
    inputs = [value for value in node.all_input_nodes if shape_of(value)]
    result = []
    for back in range(-len(shape), 0):
        meeting = [v for v in inputs if len(shape_of(v)) >= -back and shape_of(v)[back] > 1]
        axes = [follower.axes_of(value)[back] for value in meeting]
        result.append(follower.meet(axes) if axes else None)
    return tuple(result)


def keep_channels(follower: Follower, node: Node) -> Axes:
    """Pool: what is not the channels of [N, C, …] is mixed."""
    axes = follower.axes_of(node.args[0])
    for axis in (axes[0], *axes[2:]):
        follower.close_axis(axis)
    return (None, axes[1], *(None,) * (len(shape_of(node)) - 2))


def reshape(follower: Follower, node: Node) -> Axes:
    """Split or merge axes; see ``reshaping``."""
    (x,) = node.all_input_nodes[:1]
    return reshaping.reshape(follower.labels, follower.axes_of(x), shape_of(x), shape_of(node))


def reduce(follower: Follower, node: Node) -> Axes:
    """Drop axes; a mean over labelled positions makes the others depend on them."""
    x, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
    axes, shape = follower.axes_of(x), shape_of(x)
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple):
        follower.close(*node.all_input_nodes)
        return (None,) * len(shape_of(node))
    gone = {int(d) % len(shape) for d in dims if isinstance(d, int)}
    for dim in gone:
        if (axis := axes[dim]) is not None:
            follower.labels.mark("normalized" if operator_of(node) == "mean" else "closed", axis)
    if len(shape_of(node)) == len(shape):
        return tuple(None if dim in gone else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


def permute(follower: Follower, node: Node) -> Axes:
    """Give the axes another order."""
    axes = follower.axes_of(node.args[0])
    order = list(range(len(axes)))
    if operator_of(node) == "permute":
        order = [int(d) % len(axes) for d in arguments_of(node)[1]]
    elif len(axes) > 1:
        a, b = (int(d) for d in arguments_of(node)[1:3]) if len(node.args) > 1 else (0, 1)
        order[a], order[b] = order[b], order[a]
    return tuple(axes[dim] for dim in order)


def expand(follower: Follower, node: Node) -> Axes:
    """Repeat axes of one position: those repeated have no labels."""
    axes, shape, after = follower.axes_of(node.args[0]), shape_of(node.args[0]), shape_of(node)
    new = len(after) - len(shape)
    kept = [a if n == m else None for a, n, m in zip(axes, shape, after[new:], strict=True)]
    return (*(None,) * new, *kept)


def slice_(follower: Follower, node: Node) -> Axes:
    """Take a part of one axis: ``slice``, ``select`` or ``narrow``."""
    x, dim, *rest = arguments_of(node)
    axes, shape = list(follower.axes_of(x)), shape_of(x)
    dim = int(dim or 0) % len(shape)
    if operator_of(node) == "select":
        follower.close_axis(axes[dim])
        return tuple(axes[:dim] + axes[dim + 1 :])
    numbers = [value if isinstance(value, int) else None for value in rest]
    axis = axes[dim]
    if axis is not None and shape_of(node)[dim] != shape[dim]:
        start = numbers[0] or 0 if numbers else 0
        step = numbers[2] if len(numbers) > 2 and numbers[2] else 1
        axes[dim] = axis[start % len(axis) :: step][: shape_of(node)[dim]]
    return tuple(axes)


def split(follower: Follower, node: Node) -> Axes:
    """Return nothing: the parts are taken by ``item``."""
    return ()


def item(follower: Follower, node: Node) -> Axes:
    """Return one of several results: a part of a split, or the main one of a norm."""
    source, index = node.args[0], node.args[1]
    assert isinstance(source, Node)
    if operator_of(source) not in ("split", "chunk", "split_with_sizes", "unbind"):
        axes = follower.axes_of(source)
        return (
            axes
            if index == 0 and len(axes) == len(shape_of(node))
            else (None,) * len(shape_of(node))
        )
    x, dim = (
        source.args[0],
        source.args[2] if len(source.args) > 2 else source.kwargs.get("dim", 0),
    )
    parts = list(follower.axes_of(x))
    assert isinstance(dim, int)
    dim %= len(parts)
    sizes = [int(part.shape[dim]) for part in source.meta["val"]]
    assert isinstance(index, int)
    start = sum(sizes[:index])
    if (axis := parts[dim]) is not None:
        parts[dim] = axis[start : start + sizes[index]]
    return tuple(parts)


def concatenate(follower: Follower, node: Node) -> Axes:
    """Put axes of one kind behind each other; the others meet."""
    parts, dim = arguments_of(node)[0], (node.args[1] if len(node.args) > 1 else 0)
    values = [follower.axes_of(part) for part in parts]
    rank = len(shape_of(node))
    assert isinstance(dim, int)
    result: list[Axis | None] = []
    for axis in range(rank):
        along = [value[axis] for value in values]
        if axis != dim % rank:
            result.append(follower.meet(along))
        elif all(part is not None for part in along):
            result.append(np.concatenate([part for part in along if part is not None]))
        else:
            follower.meet([*along, None])
            result.append(None)
    return tuple(result)


def pad(follower: Follower, node: Node) -> Axes:
    """Close the axes that grow."""
    x, amounts = arguments_of(node)[:2]
    axes = list(follower.axes_of(x))
    for i in range(len(amounts) // 2):
        if amounts[2 * i] or amounts[2 * i + 1]:
            follower.close_axis(axes[-1 - i])
            axes[-1 - i] = None
    return tuple(axes)


def softmax(follower: Follower, node: Node) -> Axes:
    """Close the axis whose positions are weighed against each other."""
    axes, dim = list(follower.axes_of(node.args[0])), node.args[1]
    assert isinstance(dim, int)
    follower.close_axis(axes[dim])
    axes[dim] = None
    return tuple(axes)


MOVES: Mapping[str, Handler] = {
    **dict.fromkeys(_POINTWISE, pointwise), **dict.fromkeys(_POOLING, keep_channels),
    **dict.fromkeys(_RESHAPE, reshape), **dict.fromkeys(_REDUCE, reduce),
    "permute": permute, "transpose": permute, "t": permute, "expand": expand, "slice": slice_,
    "select": slice_, "narrow": slice_, "split": split, "chunk": split, "split_with_sizes": split,
    "getitem": item, "cat": concatenate, "concat": concatenate, "pad": pad,
    "constant_pad_nd": pad, "softmax": softmax, "_softmax": softmax,
}  # fmt: skip
"""Handlers by the name of the operator."""
