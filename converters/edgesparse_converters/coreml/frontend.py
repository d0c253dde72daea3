"""From a torch module to a graph that coremltools can translate: ``torch.export`` only.

Operators with a translator stay whole (linear, layer_norm, gelu, …): Core ML has them and runs them
better than their parts. Only those without one are decomposed, with torch's own decompositions,
again and again until nothing new turns up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from edgesparse.errors import Unsupported
from edgesparse_converters.coreml import translate

REFUSED_ARGUMENTS = (torch.ops.aten.new_ones.default, torch.ops.aten.rms_norm.default)
"""Operators whose translator does not take what torch 2.13 passes; see ``compat``."""

MAX_ROUNDS = 8


def lower(program: ExportedProgram, *, fused_attention: bool = False) -> ExportedProgram:
    """Return the program with only operators that have a translator.

    Args:
        program: As ``torch.export.export`` gives it.
        fused_attention: Leave attention one operator where Core ML has it. By default it is
            decomposed: fused attention of iOS 18 has known wrong results on some systems.

    Raises:
        Unsupported: Operators remain that coremltools cannot translate, or integers that Core ML
            cannot hold, by name.
    """
    translate.register()
    program = program.run_decompositions({})
    available = torch.export.default_decompositions()
    chosen: dict[Any, Any] = {}
    for _ in range(MAX_ROUNDS):
        wanted = _without_translator(program) | _refused(program)
        found = {op: available[op] for op in wanted if op in available and op not in chosen}
        if not found:
            break
        chosen.update(found)
        program = program.run_decompositions(dict(chosen))
    _refuse_untranslatable(program)
    _refuse_wide_integers(program)
    _set_attention(program, fused=fused_attention)
    return program


def _operators(program: ExportedProgram) -> set[Any]:
    """Return every operator the graph calls, in its nested graphs too."""
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return {
        node.target
        for graph in graphs
        for node in graph.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    }


def _without_translator(program: ExportedProgram) -> set[Any]:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    return {
        op
        for op in _operators(program)
        if _TORCH_OPS_REGISTRY.get_func(op.name().lower()) is None
        and _TORCH_OPS_REGISTRY.get_func(op.__name__.lower()) is None
    }


def _refused(program: ExportedProgram) -> set[Any]:
    return _operators(program) & set(REFUSED_ARGUMENTS)


def _refuse_untranslatable(program: ExportedProgram) -> None:
    left = sorted(str(op) for op in _without_translator(program))
    if left:
        raise Unsupported(
            f"coremltools has no translation for {', '.join(left)}; rewrite these in the module "
            "or register a translator with coremltools' register_torch_op"
        )


def _refuse_wide_integers(program: ExportedProgram) -> None:
    """Refuse 64-bit constants that need them: coremltools would write 2147483647 without a word."""
    limits = torch.iinfo(torch.int32)
    for name, tensor in (*program.state_dict.items(), *program.constants.items()):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64:
            continue
        if tensor.numel() and not limits.min <= tensor.min() <= tensor.max() <= limits.max:
            raise Unsupported(
                f"{name} holds integers beyond 32 bits; Core ML has none: keep them outside of "
                "the module"
            )


def _set_attention(program: ExportedProgram, *, fused: bool) -> None:
    """Choose how attention is written by what coremltools 9.0 looks at: the ``scale`` argument.

    With an explicit scale it emits matmul and softmax, without one the fused operator.
    https://github.com/apple/coremltools/pull/2864
    """
    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target is not attention:
            continue
        default = node.args[0].meta["val"].shape[-1] ** -0.5
        scale = node.kwargs.get("scale")
        if not fused and scale is None:
            node.kwargs = {**node.kwargs, "scale": default}
        elif fused and scale is not None and abs(scale - default) < 1e-6:
            node.kwargs = {key: v for key, v in node.kwargs.items() if key != "scale"}
