"""Put ordinary layers back into a graph: each ATen call on a weight becomes a call of a module.

An exported program keeps its weights' names but not its layers: ``aten.linear(x, fc.weight,
fc.bias)``. Here that call becomes ``self.fc(x)`` with a real ``nn.Linear`` at ``fc``, so that
hooks, statistics and packed layers work as for any module. A weight that no module of its own can
hold (one that is sliced first, say) stays an attribute and is not compressible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from edgesparse.capture.calls import Call, parameter_of, read_call

aten = torch.ops.aten
_NORMS = {
    aten.layer_norm.default: (2, 3), aten.group_norm.default: (2, 3), aten.rms_norm.default: (2,),
    aten.batch_norm.default: (1, 2, 3, 4), aten.instance_norm.default: (1, 2, 3, 4),
    aten._native_batch_norm_legit_no_training.default: (1, 2, 3, 4),
    aten.native_layer_norm.default: (2, 3), aten.native_group_norm.default: (1, 2),
}  # fmt: skip


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
        call = read_call(graph_module, node)
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
    reads = [parameter_of(graph_module, node) for node in graph.nodes]
    elsewhere = {
        path
        for path, layer in lifted.items()
        if any(_is_tied(layer._parameters["weight"], tensor) for tensor in reads)
    }
    graph.lint()
    graph_module.recompile()
    return Lifted(frozenset(elsewhere), norms)


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
    weight = parameter_of(root, call.weight)
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
        and _is_tied(layer._parameters["weight"], parameter_of(root, call.weight))
        and (
            call.bias is None or _is_tied(layer._parameters["bias"], parameter_of(root, call.bias))
        )
    )


def _holds_only(root: nn.Module, held: nn.Module | None, call: Call) -> bool:
    """Whether ``held`` is a nameless container of just the call's weight and bias."""
    if held is None or type(held) is not nn.Module or held._buffers or held._modules:
        return False
    expected = {"weight": call.weight} | ({"bias": call.bias} if call.bias is not None else {})
    return held._parameters.keys() == expected.keys() and all(
        _is_tied(held._parameters[leaf], parameter_of(root, read))
        for leaf, read in expected.items()
    )


def _fill(root: nn.Module, call: Call) -> None:
    for leaf, node in (("weight", call.weight), ("bias", call.bias)):
        if node is not None:
            parameter = parameter_of(root, node)
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
