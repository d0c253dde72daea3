"""What products, norms and lookups do to labelled axes: those that read parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch.fx import Node

from edgesparse.structured.nodes import padded, shape_of
from edgesparse.structured.reshaping import Axes

if TYPE_CHECKING:
    from edgesparse.structured.follow import Follower

Handler = Callable[["Follower", Node], Axes]


def linear(follower: Follower, node: Node) -> Axes:
    """Sum over the last axis of the input; the weight's rows make the new one."""
    x, weight, bias = padded(node, 3)
    lead = follower.axes_of(x)
    follower.sum_over(lead[-1], weight, 1)
    made = [follower.axes_of(weight)[0]] + ([follower.axes_of(bias)[0]] if bias is not None else [])
    return (*lead[:-1], follower.meet(made))


def addmm(follower: Follower, node: Node) -> Axes:
    """Sum over the columns of the input and the rows of the weight, as GPT-2 stores it."""
    bias, x, weight = node.args[:3]
    follower.sum_over(follower.axes_of(x)[1], weight, 0)
    return (
        follower.axes_of(x)[0],
        follower.meet([follower.axes_of(weight)[1], follower.axes_of(bias)[-1]]),
    )


def matmul(follower: Follower, node: Node) -> Axes:
    """Sum over the last axis of the first and the last but one of the second."""
    a, b = (follower.axes_of(value) for value in node.args[:2])
    if len(a) < 2 or len(b) != len(a):
        follower.close(*node.all_input_nodes)
        return (None,) * len(shape_of(node))
    follower.meet([a[-1], b[-2]])
    lead = tuple(follower.heads(pair) for pair in zip(a[:-2], b[:-2], strict=True))
    return (*lead, a[-2], b[-1])


def attention(follower: Follower, node: Node) -> Axes:
    """Join the heads of queries, keys and values; few key heads serve several query heads."""
    query, key, value = (follower.axes_of(a) for a in node.args[:3])
    for axes in (query, key, value):
        for i in (-1, -2):
            follower.close_axis(axes[i])
    heads = [axes[-3] if len(axes) > 2 else None for axes in (query, key, value)]
    many = max((len(axis) for axis in heads if axis is not None), default=0)
    wide = [None if a is None or many % len(a) else np.repeat(a, many // len(a)) for a in heads]
    rank = len(shape_of(node))
    lead = [None] * (rank - 3)
    return (*lead, follower.heads(wide), None, None) if rank > 2 else (None,) * rank


def convolution(follower: Follower, node: Node) -> Axes:
    """Sum over the channels, or keep each apart where there is a group for each."""
    x, weight, bias, _, _, _, groups = padded(node, 7)
    groups = 1 if groups is None else groups
    rest = (None,) * (len(shape_of(node)) - 2)
    made = [follower.axes_of(weight)[0]] + ([follower.axes_of(bias)[0]] if bias is not None else [])
    channels = follower.axes_of(x)[1]
    for axis in follower.axes_of(weight)[2 if groups == 1 else 1 :]:
        follower.close_axis(axis)
    if groups == 1:
        follower.sum_over(channels, weight, 1)
        return (None, follower.meet(made), *rest)
    if groups == shape_of(x)[1] == shape_of(node)[1]:  # depthwise
        return (None, follower.meet([channels, *made]), *rest)
    follower.close(*node.all_input_nodes)
    return (None, None, *rest)


def batch_norm(follower: Follower, node: Node) -> Axes:
    """Join the channels with the four vectors that have one value for each."""
    vectors = [follower.axes_of(a)[0] for a in node.args[1:5] if isinstance(a, Node)]
    axes = list(follower.axes_of(node.args[0]))
    axes[1] = follower.meet([axes[1], *vectors])
    return tuple(axes)


def last_axis_norm(follower: Follower, node: Node) -> Axes:
    """Normalize over the last axis: its positions depend on each other by their mean."""
    x, shape, weight, bias = padded(node, 4)
    vectors = [follower.axes_of(a)[0] for a in (weight, bias) if isinstance(a, Node)]
    axes = follower.axes_of(x)
    if not isinstance(shape, list | tuple) or len(shape) != 1:
        follower.close(*node.all_input_nodes)
        return (None,) * len(shape_of(node))
    axis = follower.meet([axes[-1], *vectors])
    if axis is not None:
        follower.labels.mark("normalized", axis)
    return (*axes[:-1], axis)


def embedding(follower: Follower, node: Node) -> Axes:
    """Look rows up: the vocabulary is closed, the width goes on."""
    weight, indices = node.args[:2]
    vocabulary, width = follower.axes_of(weight)
    follower.close_axis(vocabulary)
    follower.close(*[a for a in (indices,) if isinstance(a, Node)])
    return (*(None,) * (len(shape_of(node)) - 1), width)


PRODUCTS: Mapping[str, Handler] = {
    "linear": linear, "addmm": addmm, "matmul": matmul, "bmm": matmul,
    "scaled_dot_product_attention": attention,
    "conv1d": convolution, "conv2d": convolution, "conv3d": convolution,
    "batch_norm": batch_norm, "_native_batch_norm_legit_no_training": batch_norm,
    "layer_norm": last_axis_norm, "rms_norm": last_axis_norm, "embedding": embedding,
}  # fmt: skip
"""Handlers by the name of the operator."""
