"""Put ordinary layers back into a graph: each ATen call on a weight becomes a call of a module.

An exported program keeps its weights' names but not its layers: ``aten.linear(x, fc.weight,
fc.bias)``. Here that call becomes ``self.fc(x)`` with a real ``nn.Linear`` at ``fc``, so that
hooks, statistics and packed layers work as for any module. A weight that no module of its own can
hold (one that is sliced first, say) stays an attribute and is not compressible.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_NORMS = {
    aten.layer_norm.default: (2, 3), aten.group_norm.default: (2, 3), aten.rms_norm.default: (2,),
    aten.batch_norm.default: (1, 2, 3, 4), aten.instance_norm.default: (1, 2, 3, 4),
    aten._native_batch_norm_legit_no_training.default: (1, 2, 3, 4),
    aten.native_layer_norm.default: (2, 3), aten.native_group_norm.default: (1, 2),
}  # fmt: skip


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


@dataclass(frozen=True)
class Lifted:
    """What ``lift`` could not give a module of its own.

    Attributes:
        elsewhere: Paths of layers whose weight is read by other nodes too.
        norms: Names of the tensors that normalizations use.
    """

    elsewhere: frozenset[str]
    norms: frozenset[str]


def lift(graph_module: fx.GraphModule) -> Lifted:
    """Replace calls by modules, in place."""
    graph = graph_module.graph
    lifted: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        call = _read_call(graph_module, node)
        if call is None:
            continue
        path = _place(graph_module, call, node, lifted)
        if path is None:
            continue
        with graph.inserting_before(node):
            replacement = graph.call_module(path, (call.x,))
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    norms = _norms(graph)
    _drop_unused_reads(graph)
    reads = [_tensor(graph_module, node) for node in graph.nodes]
    elsewhere = {
        path
        for path, layer in lifted.items()
        if any(_is_tied(layer._parameters["weight"], tensor) for tensor in reads)
    }
    graph.lint()
    graph_module.recompile()
    return Lifted(frozenset(elsewhere), norms)


def _read_call(root: nn.Module, node: fx.Node) -> Call | None:
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
        weight = _tensor(root, bound["weight"])
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


def _tensor(root: nn.Module, node: object) -> torch.Tensor | None:
    """Return the parameter a ``get_attr`` node reads, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, leaf = str(node.target).rpartition(".")
    found = getattr(root.get_submodule(path), leaf, None)
    return found if isinstance(found, nn.Parameter) else None


def _linear(root: nn.Module, x: object, weight: object, bias: object) -> Call | None:
    matrix, offset = _tensor(root, weight), _tensor(root, bias)
    if matrix is None or matrix.dim() != 2 or not isinstance(x, fx.Node):
        return None
    if bias is not None and (offset is None or offset.shape != matrix.shape[:1]):
        return None
    outputs, inputs = matrix.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta", dtype=matrix.dtype)
    return _call(x, weight, bias, layer)


def _embedding(root: nn.Module, bound: dict[str, Any]) -> Call | None:
    table = _tensor(root, bound["weight"])
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
    kernel, bias = _tensor(root, bound["weight"]), bound.get("bias")
    if kernel is None or (bias is not None and _tensor(root, bias) is None):
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


def _place(root: nn.Module, call: Call, node: fx.Node, lifted: dict[str, nn.Module]) -> str | None:
    """Put the layer where its weight lives; return its path, or None when there is no room."""
    for path in _candidates(root, call, node):
        if path in lifted:
            if _is_same(root, lifted[path], call):
                return path
            continue
        parent, _, leaf = path.rpartition(".")
        owner = root.get_submodule(parent)
        if leaf in owner._modules and not _holds_only(root, owner._modules[leaf], call):
            continue
        _fill(root, call)
        if leaf in owner._parameters:  # a bare parameter of this name gives way to the layer
            delattr(owner, leaf)
            _rename_reads(node.graph, path, f"{path}.weight")
        owner.add_module(leaf, call.layer)
        lifted[path] = call.layer
        return path
    return None


def _candidates(root: nn.Module, call: Call, node: fx.Node) -> Iterator[str]:
    """Yield the paths a layer may have: where the traced module was, other names, the bare name."""
    weight = _tensor(root, call.weight)
    names = [str(call.weight.target)]
    names += [n for n, p in root.named_parameters(remove_duplicate=False) if _is_tied(p, weight)]
    traced = str(list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1][0])
    names.sort(key=lambda name: name != f"{traced}.weight")
    for name in names:
        path, _, leaf = name.rpartition(".")
        if path and leaf == "weight":
            yield path
    yield str(call.weight.target)


def _is_same(root: nn.Module, layer: nn.Module, call: Call) -> bool:
    """Whether ``layer`` makes the very call: same weights, same options."""
    return (
        repr(layer) == repr(call.layer)
        and _is_tied(layer._parameters["weight"], _tensor(root, call.weight))
        and (call.bias is None or _is_tied(layer._parameters["bias"], _tensor(root, call.bias)))
    )


def _holds_only(root: nn.Module, held: nn.Module | None, call: Call) -> bool:
    """Whether ``held`` is a nameless container of just the call's weight and bias."""
    if held is None or type(held) is not nn.Module or held._buffers or held._modules:
        return False
    expected = {"weight": call.weight} | ({"bias": call.bias} if call.bias is not None else {})
    return held._parameters.keys() == expected.keys() and all(
        _is_tied(held._parameters[leaf], _tensor(root, read)) for leaf, read in expected.items()
    )


def _fill(root: nn.Module, call: Call) -> None:
    for leaf, node in (("weight", call.weight), ("bias", call.bias)):
        if node is not None:
            parameter = _tensor(root, node)
            assert isinstance(parameter, nn.Parameter)
            call.layer.register_parameter(leaf, parameter)


def _is_tied(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors are the same numbers in the same place."""
    if one is None or other is None:
        return False
    return one is other or (
        one.data_ptr() == other.data_ptr() != 0
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _rename_reads(graph: fx.Graph, old: str, new: str) -> None:
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == old:
            node.target = new


def _norms(graph: fx.Graph) -> frozenset[str]:
    """Return the names of tensors that normalizations take."""
    return frozenset(
        str(node.args[i].target)
        for node in graph.nodes
        for i in _NORMS.get(node.target, ())
        if i < len(node.args) and isinstance(node.args[i], fx.Node)
        if node.args[i].op == "get_attr"
    )


def _drop_unused_reads(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        transposes = node.target in (aten.t.default, aten.permute.default, aten.transpose.int)
        if not node.users and (node.op == "get_attr" or transposes):
            graph.erase_node(node)
