"""Follow channel axes through an exported graph.

Every value has at most one channel axis, and the axis belongs to a set of channels. Sets are joined
where an operation needs its inputs to have the same channels, and closed for cutting where anything
happens that is not known to treat channels one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten

_LINEAR = {aten.linear.default}
_CONVOLUTION = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_BATCH_NORM = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
# Each output element depends on the same element of the inputs alone.
_POINTWISE = {
    "add", "sub", "mul", "div", "relu", "relu_", "relu6", "gelu", "silu", "silu_", "sigmoid",
    "tanh", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "hardsigmoid", "leaky_relu", "elu",
    "clamp", "clamp_min", "pow", "neg", "abs", "exp", "softplus", "mish", "dropout", "dropout_",
    "clone", "contiguous", "to", "_to_copy", "alias", "detach", "detach_", "add_", "mul_", "square",
    "sqrt", "rsqrt", "feature_dropout", "_assert_tensor_metadata",
}  # fmt: skip
# Works on the axes after the channels of [N, C, …], each channel alone.
_POOLING = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
}  # fmt: skip
_RESHAPE = {"view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze"}


@dataclass
class _Channels:
    """One set of channels; ``joined`` points to the set it became part of."""

    size: int
    members: set[tuple[str, int, bool]] = field(default_factory=set)
    closed: bool = False
    joined: _Channels | None = None

    def root(self) -> _Channels:
        return self if self.joined is None else self.joined.root()


@dataclass(frozen=True)
class _Axis:
    dim: int
    channels: _Channels


class Follower:
    """One pass over a program.

    Args:
        program: An exported program whose operators are those of the module, not decomposed.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._nodes = list(program.graph.nodes)
        self._tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._axes: dict[Node, _Axis] = {}
        self._sets: list[_Channels] = []

    def run(self) -> Iterator[tuple[int, set[tuple[str, int, bool]]]]:
        """Yield size and members of every set that can be cut."""
        for node in self._nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._close(*node.all_input_nodes)
        roots = {id(of.root()): of.root() for of in self._sets}
        self._close_shared(roots)
        for channels in roots.values():
            if not channels.closed:
                yield channels.size, channels.members

    def _close_shared(self, roots: dict[int, _Channels]) -> None:
        """Close sets with a weight that is used more than once: a cut would change both uses."""
        uses: dict[str, int] = {}
        for node in self._nodes:
            for argument in node.all_input_nodes:
                if argument.name in self._tensors:
                    name = self._tensors[argument.name]
                    uses[name] = uses.get(name, 0) + 1
        for channels in roots.values():
            if any(uses.get(name, 0) > 1 for name, _, _ in channels.members):
                channels.closed = True

    def _call(self, node: Node) -> None:
        name = getattr(node.target, "_overloadpacket", node.target)
        name = getattr(name, "__name__", str(name))
        if node.target in _LINEAR:
            self._product(node, dim=-1)
        elif node.target == aten.addmm.default:
            self._addmm(node)
        elif node.target in _CONVOLUTION:
            self._convolution(node)
        elif node.target in _BATCH_NORM:
            self._batch_norm(node)
        elif name in _POINTWISE:
            self._pointwise(node)
        elif name in _POOLING:
            self._keep(node, lambda dim, shape: dim if dim == 1 else None)
        elif name in _RESHAPE:
            self._keep(node, lambda dim, shape: _after_reshape(dim, shape, _shape(node)))
        elif name in ("permute", "transpose"):
            self._keep(node, lambda dim, shape: _after_permute(node, dim, len(shape)))
        elif name in ("pad", "constant_pad_nd"):
            padded = len(_arguments(node)[1]) // 2  # trailing axes, the last one first
            self._keep(node, lambda dim, shape: dim if dim < len(shape) - padded else None)
        elif name == "mean":
            self._mean(node)
        else:
            self._close(*node.all_input_nodes)

    def _product(self, node: Node, *, dim: int) -> None:
        """End the channels a product with a weight [out, in, …] reads, begin those it makes."""
        x, weight = node.args[0], node.args[1]
        bias = node.args[2] if len(node.args) > 2 else None
        assert isinstance(x, Node)
        named = self._name(weight)
        self._read(x, dim % len(_shape(x)), named, 1)
        if named is not None:
            self._begin(node, dim % len(_shape(node)), [(named, 0), (self._name(bias), 0)])

    def _addmm(self, node: Node) -> None:
        """Do the same for ``bias + x @ weight`` with a weight [in, out]."""
        bias, x, weight = node.args[:3]
        named = self._name(weight)
        if named is None or not isinstance(x, Node):
            self._close(*node.all_input_nodes)
            return
        self._read(x, 1, named, 0)
        self._begin(node, 1, [(named, 1), (self._name(bias), 0)])

    def _convolution(self, node: Node) -> None:
        groups = node.args[6] if len(node.args) > 6 else 1
        x, weight = node.args[0], node.args[1]
        bias = node.args[2] if len(node.args) > 2 else None
        assert isinstance(x, Node)
        axis = self._axes.get(x)
        depthwise = groups == _shape(x)[1] == _shape(node)[1]
        if groups == 1:
            self._product(node, dim=1)
        elif depthwise and axis is not None and axis.dim == 1:
            self._join_members(axis.channels, [(self._name(weight), 0), (self._name(bias), 0)])
            self._axes[node] = axis
        else:
            self._close(*node.all_input_nodes)

    def _batch_norm(self, node: Node) -> None:
        x = node.args[0]
        assert isinstance(x, Node)
        axis = self._axes.get(x)
        if axis is None or axis.dim != 1:
            self._close(x)
            return
        self._join_members(axis.channels, [(self._name(a), 0) for a in node.args[1:5]])
        self._axes[node] = axis

    def _pointwise(self, node: Node) -> None:
        """Join the channels of all inputs; a vector of parameters along them becomes a member."""
        inputs = node.all_input_nodes
        found = [(i, self._axes[i]) for i in inputs if i in self._axes]
        if not found:
            return
        rank = len(_shape(node))
        first, axis = found[0]
        back = axis.dim - len(_shape(first))  # from the right, as broadcasting counts
        for value in inputs:
            other = self._axes.get(value)
            shape = _shape(value)
            same = other is not None and other.dim - len(shape) == back
            if same and other is not None:
                self._join(axis.channels, other.channels)
            elif len(shape) < -back or shape[back] == 1:
                continue  # broadcast over the channels: the same for each
            elif (name := self._name(value)) is not None and other is None:
                self._join_members(axis.channels, [(name, len(shape) + back)])
            else:
                self._close(*inputs)
                return
        self._axes[node] = _Axis(rank + back, axis.channels)

    def _mean(self, node: Node) -> None:
        """A mean over other axes keeps the channels; one over the channels mixes them."""
        dims = node.args[1] if len(node.args) > 1 else None
        keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
        dims = [dims] if isinstance(dims, int) else dims

        def after(dim: int, shape: tuple[int, ...]) -> int | None:
            if not isinstance(dims, list | tuple):
                return None
            gone = {int(d) % len(shape) for d in dims if isinstance(d, int)}
            if dim in gone:
                return None
            return dim if keep else dim - sum(d < dim for d in gone)

        self._keep(node, after)

    def _keep(self, node: Node, after: Any) -> None:
        """Pass the channels of the first input on, on the axis ``after`` says, or close them."""
        x = node.args[0]
        axis = self._axes.get(x) if isinstance(x, Node) else None
        if axis is None or not isinstance(x, Node):
            return
        dim = after(axis.dim, _shape(x))
        if dim is None:
            self._close(x)
        else:
            self._axes[node] = _Axis(dim, axis.channels)

    def _name(self, value: object) -> str | None:
        """Return the state-dict name behind an argument, None for computed values."""
        return self._tensors.get(value.name) if isinstance(value, Node) else None

    def _begin(self, node: Node, dim: int, members: list[tuple[str | None, int]]) -> None:
        channels = _Channels(_shape(node)[dim])
        self._sets.append(channels)
        self._axes[node] = _Axis(dim, channels)
        self._join_members(channels, members)

    def _read(self, x: Node, dim: int, name: str | None, weight_dim: int) -> None:
        axis = self._axes.get(x)
        if axis is None:
            return
        if axis.dim != dim or name is None:
            self._close(x)
        else:
            axis.channels.root().members.add((name, weight_dim, True))

    def _join_members(self, channels: _Channels, members: list[tuple[str | None, int]]) -> None:
        channels.root().members.update((name, dim, False) for name, dim in members if name)

    def _join(self, first: _Channels, second: _Channels) -> None:
        a, b = first.root(), second.root()
        if a is not b:
            a.members |= b.members
            a.closed |= b.closed
            b.joined = a

    def _close(self, *nodes: Node) -> None:
        for node in nodes:
            if node in self._axes:
                self._axes[node].channels.root().closed = True


def _shape(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's value, () when it is no tensor."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def _arguments(node: Node) -> Any:
    """Return the positional arguments; their types are the operator's own."""
    return node.args


def _after_reshape(dim: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Return the axis that still holds exactly the channels, None when they are mixed or split."""
    lead = math.prod(before[:dim])
    for axis, size in enumerate(after):
        if size == before[dim] and math.prod(after[:axis]) == lead:
            return axis
    return None


def _after_permute(node: Node, dim: int, rank: int) -> int:
    """Return where ``permute`` or ``transpose`` puts an axis."""
    arguments = _arguments(node)
    if isinstance(arguments[1], list | tuple):
        return [int(d) % rank for d in arguments[1]].index(dim)
    a, b = int(arguments[1]) % rank, int(arguments[2]) % rank
    return {a: b, b: a}.get(dim, dim)
