"""Follow labelled axes through an exported graph, operation by operation.

Every axis of every parameter has labels of its own. An operation that treats positions alike joins
the axes that meet in it and hands them on; a product joins the axis it sums over. Whatever is not
known to do so closes what it is given. ``groups.py`` reads the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgesparse.structured import reshaping
from edgesparse.structured.labels import Axis, Labels
from edgesparse.structured.reshaping import Axes

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


class Follower:
    """One pass over a program whose operators are those of the module, not decomposed.

    Attributes:
        labels: What belongs together.
        axes: Labels of every axis of every parameter and buffer that was met, by its name.
        reads: (name, axis) of every axis that a product sums over.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.labels = Labels()
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.reads: set[tuple[str, int]] = set()
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._values: dict[Node, Axes] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in self._names:
                self._tensor(node)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                self._close(*node.all_input_nodes)

    def _tensor(self, node: Node) -> None:
        """Give a parameter or buffer its labels; under a second name it keeps those it has."""
        name = self._names[node.name]
        if name not in self.axes:
            self.axes[name] = tuple(self.labels.new(size) for size in _shape(node))
        self._values[node] = self.axes[name]

    def _call(self, node: Node) -> Axes:
        name = _operator(node)
        rank = len(_shape(node))
        if name in _HANDLERS:
            return _HANDLERS[name](self, node)
        if name in _POINTWISE:
            return self._pointwise(node)
        if name in _POOLING:
            return self._keep_channels(node)
        if name in _RESHAPE:
            (x,) = node.all_input_nodes[:1]
            return reshaping.reshape(self.labels, self._of(x), _shape(x), _shape(node))
        if name in _REDUCE:
            return self._reduce(node)
        if not name.startswith(("_assert", "sym_")):
            self._close(*node.all_input_nodes)
        return (None,) * rank

    def _of(self, value: object) -> Axes:
        """Return the labels of a value's axes, none for what is no node."""
        if not isinstance(value, Node):
            return ()
        return self._values.get(value, (None,) * len(_shape(value)))

    def _close(self, *nodes: Node) -> None:
        for node in nodes:
            for axis in self._of(node):
                self._close_axis(axis)

    def _close_axis(self, axis: Axis | None) -> None:
        if axis is not None and axis.size:
            self.labels.mark("closed", axis)

    def _meet(self, axes: Sequence[Axis | None]) -> Axis | None:
        """Join axes of one size that meet; one without labels closes the others."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes):
            for axis in known:
                self._close_axis(axis)
            return None
        for axis in known[1:]:
            self.labels.join(known[0], axis)
        return known[0] if known else None

    def _sum_over(self, x: Axis | None, weight: object, dim: int) -> None:
        """Let a product sum over ``x`` and an axis of its weight."""
        self._meet([x, self._of(weight)[dim]])
        if isinstance(weight, Node) and weight.name in self._names:
            self.reads.add((self._names[weight.name], dim))

    def _linear(self, node: Node) -> Axes:
        x, weight, bias = _padded(node, 3)
        lead = self._of(x)
        self._sum_over(lead[-1], weight, 1)
        made = [self._of(weight)[0]] + ([self._of(bias)[0]] if bias is not None else [])
        return (*lead[:-1], self._meet(made))

    def _addmm(self, node: Node) -> Axes:
        bias, x, weight = node.args[:3]
        self._sum_over(self._of(x)[1], weight, 0)
        return (self._of(x)[0], self._meet([self._of(weight)[1], self._of(bias)[-1]]))

    def _matmul(self, node: Node) -> Axes:
        """Sum over the last axis of the first and the last but one of the second."""
        a, b = (self._of(value) for value in node.args[:2])
        if len(a) < 2 or len(b) != len(a):
            self._close(*node.all_input_nodes)
            return (None,) * len(_shape(node))
        self._meet([a[-1], b[-2]])
        lead = tuple(self._batch(pair) for pair in zip(a[:-2], b[:-2], strict=True))
        return (*lead, a[-2], b[-1])

    def _batch(self, axes: Sequence[Axis | None]) -> Axis | None:
        axis = self._meet(axes)
        if axis is not None:
            self.labels.mark("attention", axis)
        return axis

    def _attention(self, node: Node) -> Axes:
        """Join the heads of queries, keys and values; few key heads serve several query heads."""
        query, key, value = (self._of(a) for a in node.args[:3])
        for axes in (query, key, value):
            for i in (-1, -2):
                self._close_axis(axes[i])
        heads = [axes[-3] if len(axes) > 2 else None for axes in (query, key, value)]
        many = max((len(axis) for axis in heads if axis is not None), default=0)
        wide = [None if a is None or many % len(a) else np.repeat(a, many // len(a)) for a in heads]
        rank = len(_shape(node))
        lead = [None] * (rank - 3)
        return (*lead, self._batch(wide), None, None) if rank > 2 else (None,) * rank

    def _convolution(self, node: Node) -> Axes:
        x, weight, bias, _, _, _, groups = _padded(node, 7)
        groups = 1 if groups is None else groups
        rest = (None,) * (len(_shape(node)) - 2)
        made = [self._of(weight)[0]] + ([self._of(bias)[0]] if bias is not None else [])
        channels = self._of(x)[1]
        for axis in self._of(weight)[2 if groups == 1 else 1 :]:
            self._close_axis(axis)
        if groups == 1:
            self._sum_over(channels, weight, 1)
            return (None, self._meet(made), *rest)
        if groups == _shape(x)[1] == _shape(node)[1]:  # depthwise
            return (None, self._meet([channels, *made]), *rest)
        self._close(*node.all_input_nodes)
        return (None, None, *rest)

    def _batch_norm(self, node: Node) -> Axes:
        vectors = [self._of(a)[0] for a in node.args[1:5] if isinstance(a, Node)]
        axes = list(self._of(node.args[0]))
        axes[1] = self._meet([axes[1], *vectors])
        return tuple(axes)

    def _last_axis_norm(self, node: Node) -> Axes:
        """Normalize over the last axis: its positions depend on each other by their mean."""
        x, shape, weight, bias = _padded(node, 4)
        vectors = [self._of(a)[0] for a in (weight, bias) if isinstance(a, Node)]
        axes = self._of(x)
        if not isinstance(shape, list | tuple) or len(shape) != 1:
            self._close(*node.all_input_nodes)
            return (None,) * len(_shape(node))
        axis = self._meet([axes[-1], *vectors])
        if axis is not None:
            self.labels.mark("normalized", axis)
        return (*axes[:-1], axis)

    def _embedding(self, node: Node) -> Axes:
        weight, indices = node.args[:2]
        vocabulary, width = self._of(weight)
        self._close_axis(vocabulary)
        self._close(*[a for a in (indices,) if isinstance(a, Node)])
        return (*(None,) * (len(_shape(node)) - 1), width)

    def _pointwise(self, node: Node) -> Axes:
        """Join what meets; an axis of one position is the same for all."""
        shape = _shape(node)
        inputs = [value for value in node.all_input_nodes if _shape(value)]
        result = []
        for back in range(-len(shape), 0):
            meeting = [v for v in inputs if len(_shape(v)) >= -back and _shape(v)[back] > 1]
            axes = [self._of(value)[back] for value in meeting]
            result.append(self._meet(axes) if axes else None)
        return tuple(result)

    def _keep_channels(self, node: Node) -> Axes:
        axes = self._of(node.args[0])
        for axis in (axes[0], *axes[2:]):
            self._close_axis(axis)
        return (None, axes[1], *(None,) * (len(_shape(node)) - 2))

    def _reduce(self, node: Node) -> Axes:
        """Drop axes; a mean over labelled positions makes the others depend on them."""
        x, dims = node.args[0], node.args[1] if len(node.args) > 1 else None
        axes, shape = self._of(x), _shape(x)
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, list | tuple):
            self._close(*node.all_input_nodes)
            return (None,) * len(_shape(node))
        gone = {int(d) % len(shape) for d in dims if isinstance(d, int)}
        for dim in gone:
            if (axis := axes[dim]) is not None:
                self.labels.mark("normalized" if _operator(node) == "mean" else "closed", axis)
        if len(_shape(node)) == len(shape):
            return tuple(None if dim in gone else axis for dim, axis in enumerate(axes))
        return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)

    def _permute(self, node: Node) -> Axes:
        axes = self._of(node.args[0])
        order = list(range(len(axes)))
        if _operator(node) == "permute":
            order = [int(d) % len(axes) for d in _arguments(node)[1]]
        elif len(axes) > 1:
            a, b = (int(d) for d in _arguments(node)[1:3]) if len(node.args) > 1 else (0, 1)
            order[a], order[b] = order[b], order[a]
        return tuple(axes[dim] for dim in order)

    def _expand(self, node: Node) -> Axes:
        axes, shape, after = self._of(node.args[0]), _shape(node.args[0]), _shape(node)
        new = len(after) - len(shape)
        kept = [a if n == m else None for a, n, m in zip(axes, shape, after[new:], strict=True)]
        return (*(None,) * new, *kept)

    def _slice(self, node: Node) -> Axes:
        """Take a part of one axis: ``slice``, ``select`` or ``narrow``."""
        x, dim, *rest = _arguments(node)
        axes, shape = list(self._of(x)), _shape(x)
        dim = int(dim or 0) % len(shape)
        if _operator(node) == "select":
            self._close_axis(axes[dim])
            return tuple(axes[:dim] + axes[dim + 1 :])
        numbers = [value if isinstance(value, int) else None for value in rest]
        axis = axes[dim]
        if axis is not None and _shape(node)[dim] != shape[dim]:
            start = numbers[0] or 0 if numbers else 0
            step = numbers[2] if len(numbers) > 2 and numbers[2] else 1
            axes[dim] = axis[start % len(axis) :: step][: _shape(node)[dim]]
        return tuple(axes)

    def _split(self, node: Node) -> Axes:
        return ()  # its parts are taken by ``_item``

    def _item(self, node: Node) -> Axes:
        """Return one of several results: a part of a split, or the main one of a norm."""
        source, index = node.args[0], node.args[1]
        assert isinstance(source, Node)
        if _operator(source) not in ("split", "chunk", "split_with_sizes", "unbind"):
            axes = self._values.get(source, ())
            return (
                axes
                if index == 0 and len(axes) == len(_shape(node))
                else (None,) * len(_shape(node))
            )
        x, dim = (
            source.args[0],
            source.args[2] if len(source.args) > 2 else source.kwargs.get("dim", 0),
        )
        parts = list(self._of(x))
        assert isinstance(dim, int)
        dim %= len(parts)
        sizes = [int(part.shape[dim]) for part in source.meta["val"]]
        assert isinstance(index, int)
        start = sum(sizes[:index])
        if (axis := parts[dim]) is not None:
            parts[dim] = axis[start : start + sizes[index]]
        return tuple(parts)

    def _concatenate(self, node: Node) -> Axes:
        parts, dim = _arguments(node)[0], (node.args[1] if len(node.args) > 1 else 0)
        values = [self._of(part) for part in parts]
        rank = len(_shape(node))
        assert isinstance(dim, int)
        result: list[Axis | None] = []
        for axis in range(rank):
            along = [value[axis] for value in values]
            if axis != dim % rank:
                result.append(self._meet(along))
            elif all(part is not None for part in along):
                result.append(np.concatenate([part for part in along if part is not None]))
            else:
                self._meet([*along, None])
                result.append(None)
        return tuple(result)

    def _pad(self, node: Node) -> Axes:
        x, amounts = _arguments(node)[:2]
        axes = list(self._of(x))
        for i in range(len(amounts) // 2):
            if amounts[2 * i] or amounts[2 * i + 1]:
                self._close_axis(axes[-1 - i])
                axes[-1 - i] = None
        return tuple(axes)

    def _softmax(self, node: Node) -> Axes:
        axes, dim = list(self._of(node.args[0])), node.args[1]
        assert isinstance(dim, int)
        self._close_axis(axes[dim])
        axes[dim] = None
        return tuple(axes)


_HANDLERS: Mapping[str, Callable[[Follower, Node], Axes]] = {
    "linear": Follower._linear, "addmm": Follower._addmm, "matmul": Follower._matmul,
    "bmm": Follower._matmul, "scaled_dot_product_attention": Follower._attention,
    "conv1d": Follower._convolution, "conv2d": Follower._convolution,
    "conv3d": Follower._convolution, "batch_norm": Follower._batch_norm,
    "_native_batch_norm_legit_no_training": Follower._batch_norm,
    "layer_norm": Follower._last_axis_norm, "rms_norm": Follower._last_axis_norm,
    "embedding": Follower._embedding, "permute": Follower._permute,
    "transpose": Follower._permute, "t": Follower._permute, "expand": Follower._expand,
    "slice": Follower._slice, "select": Follower._slice, "narrow": Follower._slice,
    "split": Follower._split, "chunk": Follower._split, "split_with_sizes": Follower._split,
    "getitem": Follower._item, "cat": Follower._concatenate, "concat": Follower._concatenate,
    "pad": Follower._pad, "constant_pad_nd": Follower._pad, "softmax": Follower._softmax,
    "_softmax": Follower._softmax,
}  # fmt: skip


def _operator(node: Node) -> str:
    """Return the name of what a node calls, in place or not."""
    packet = getattr(node.target, "_overloadpacket", node.target)
    name = str(getattr(packet, "__name__", packet))
    return name.rstrip("_") if not name.startswith("__") else name


def _shape(value: object) -> tuple[int, ...]:
    """Return the shape of a node's value, () when it is no tensor."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(int(size) for size in found.shape) if isinstance(found, torch.Tensor) else ()


def _arguments(node: Node) -> Any:
    """Return the positional arguments; their types are the operator's own."""
    return node.args


def _padded(node: Node, count: int) -> Any:
    """Return ``count`` arguments, None for those left out."""
    return (*node.args, *(None,) * count)[:count]
