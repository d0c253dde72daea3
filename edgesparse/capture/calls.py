"""Read a node of an exported graph as the call of a layer: linear, convolution, embedding.

Both the operators of a fresh export (``aten.linear``) and those left by a decomposition
(``aten.addmm`` on a transposed weight, ``aten.convolution``) are understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten
_CONVS = {
    aten.conv1d.default: nn.Conv1d, aten.conv2d.default: nn.Conv2d, aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d, aten.conv2d.padding: nn.Conv2d, aten.conv3d.padding: nn.Conv3d,
}  # fmt: skip
_CONV_BY_DIMENSIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True)
class Call:
    """One call that a module can make instead.

    Attributes:
        x: The input node.
        weight: The ``get_attr`` node of the weight.
        bias: That of the bias, or None.
        layer: The module, its parameters on the meta device.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    layer: nn.Module


def read_call(root: nn.Module, node: fx.Node) -> Call | None:
    """Return what ``node`` computes as a layer, or None."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    bound = _arguments(node)
    if node.target is aten.linear.default:
        return _linear(root, bound["input"], bound["weight"], bound.get("bias"))
    if node.target is aten.addmm.default and bound.get("beta", 1) == bound.get("alpha", 1) == 1:
        return _linear(root, bound["mat1"], _untransposed(bound["mat2"]), bound["self"])
    if node.target is aten.mm.default:
        return _linear(root, bound["self"], _untransposed(bound["mat2"]), None)
    if node.target is aten.embedding.default:
        return _embedding(root, bound)
    if node.target in _CONVS:
        return _conv(root, _CONVS[node.target], bound)
    if node.target is aten.convolution.default and not bound["transposed"]:
        weight = parameter_of(root, bound["weight"])
        cls = _CONV_BY_DIMENSIONS.get(0 if weight is None else weight.dim())
        return cls and _conv(root, cls, bound)
    return None


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of an operator by the names of its schema, defaults left out."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _untransposed(node: Any) -> Any:
    """Return what a two-dimensional transposition transposes; of anything else None."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    order: dict[Any, list[Any]] = {
        aten.t.default: [[]],
        aten.permute.default: [[[1, 0]]],
        aten.transpose.int: [[0, 1], [1, 0], [-2, -1], [-1, -2]],
    }
    return node.args[0] if list(node.args[1:]) in order.get(node.target, []) else None


def parameter_of(root: nn.Module, node: object) -> torch.Tensor | None:
    """Return the parameter a ``get_attr`` node reads, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, leaf = str(node.target).rpartition(".")
    found = getattr(root.get_submodule(path), leaf, None)
    return found if isinstance(found, nn.Parameter) else None


def _linear(root: nn.Module, x: object, weight: object, bias: object) -> Call | None:
    matrix, offset = parameter_of(root, weight), parameter_of(root, bias)
    if matrix is None or matrix.dim() != 2 or not isinstance(x, fx.Node):
        return None
    if bias is not None and (offset is None or offset.shape != matrix.shape[:1]):
        return None
    outputs, inputs = matrix.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta", dtype=matrix.dtype)
    return _call(x, weight, bias, layer)


def _embedding(root: nn.Module, bound: dict[str, Any]) -> Call | None:
    table = parameter_of(root, bound["weight"])
    if table is None or table.dim() != 2:
        return None
    padding = bound.get("padding_idx", -1)
    rows, columns = table.shape
    layer = nn.Embedding(
        rows,
        columns,
        padding_idx=padding if padding >= 0 else None,
        device="meta",
        dtype=table.dtype,
    )
    return _call(bound["indices"], bound["weight"], None, layer)


def _conv(root: nn.Module, cls: type[Any], bound: dict[str, Any]) -> Call | None:
    kernel, bias = parameter_of(root, bound["weight"]), bound.get("bias")
    if kernel is None or (bias is not None and parameter_of(root, bias) is None):
        return None
    groups, dimensions = bound.get("groups", 1), kernel.dim() - 2

    def each(name: str, default: int) -> tuple[int, ...] | str:
        value = bound.get(name, [default])
        if isinstance(value, str):
            return value
        return tuple(value) if len(value) == dimensions else tuple(value) * dimensions

    layer = cls(
        kernel.shape[1] * groups,
        kernel.shape[0],
        tuple(kernel.shape[2:]),
        stride=each("stride", 1),
        padding=each("padding", 0),
        dilation=each("dilation", 1),
        groups=groups,
        bias=bias is not None,
        device="meta",
        dtype=kernel.dtype,
    )
    return _call(bound["input"], bound["weight"], bias, layer)


def _call(x: object, weight: object, bias: object, layer: nn.Module) -> Call:
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    assert bias is None or isinstance(bias, fx.Node)
    return Call(x, weight, bias, layer)
