"""Unstack mixture-of-experts layers: every expert gets linear layers of its own.

transformers keeps all experts of a layer in two parameters ``[experts, out, in]``. Packed as they
are they would be one matrix whose rows see different tokens: no calibration statistic fits, and to
compute one expert all would have to be decoded. Here each expert's matrix becomes the weight of an
``nn.Linear``: ``experts.gate_up_proj`` becomes ``experts.gate_up_proj.0.weight``, ``….1.weight``, …
From then on an expert is a layer that only some tokens reach, for calibration, formats and kernels.

Only the routed experts are computed, each on its own tokens. A traced or meta-device pass cannot
branch on values: it computes every expert on every token and weighs the others by zero, which is
the same sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_FORWARD_ARGUMENTS = 4  # self, hidden states, indices, weights


def unstack_experts(module: nn.Module) -> Mapping[str, tuple[str, int]]:
    """Give every expert of ``module`` linear layers of its own, in place.

    Returns:
        For the name of each tensor that came from a stack: the stack's name and the index in it.
        The parts of a stack that is stored [experts, in, out] are transposed on the way.
    """
    parts: dict[str, tuple[str, int]] = {}
    stacks = [(path, child) for path, child in module.named_modules() if is_stack(child)]
    for path, experts in stacks:
        for leaf in _stacks(experts):
            for name, source in _unstack(experts, leaf):
                index, _, tensor = name.partition(".")
                whole = f"{path}.{source}".lstrip(".")
                parts[f"{path}.{leaf}.{index}.{tensor}".lstrip(".")] = (whole, int(index))
        experts.__class__ = _unstacked_class(type(experts))  # type: ignore[arg-type]  # classes do hash
    return parts


def is_stack(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of stacked experts as transformers writes them.

    Such classes state their layout by attributes that one decorator sets.
    """
    layout = vars(module)
    if not {"is_transposed", "is_concatenated", "has_gate", "has_bias"} <= set(layout):
        return False
    down = module._parameters.get("down_proj")
    known = down is not None and down.dim() == 3 and not layout.get("has_post_expert_norm", False)
    arguments = inspect.signature(type(module).forward).parameters
    return known and len(arguments) == _FORWARD_ARGUMENTS


def is_unstacked(module: nn.Module) -> bool:
    """Whether ``unstack_experts`` made ``module`` what it is."""
    return getattr(type(module), "is_unstacked", False) is True


def stacks_of(experts: nn.Module) -> tuple[str, ...]:
    """Return the attributes of an unstacked layer that hold one linear for each expert."""
    return tuple(name for name, child in experts.named_children() if name in _names(experts))


def _names(experts: nn.Module) -> tuple[str, str]:
    return ("gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj", "down_proj")


def _stacks(experts: nn.Module) -> Iterator[str]:
    for name in _names(experts):
        if experts._parameters.get(name) is not None:
            yield name


def _unstack(experts: nn.Module, leaf: str) -> Iterator[tuple[str, str]]:
    """Replace one stack by linear layers; yield (``index.tensor``, name of its stack)."""
    stack, bias = experts._parameters.pop(leaf), experts._parameters.pop(f"{leaf}_bias", None)
    assert stack is not None
    linears = nn.ModuleList()
    for index, part in enumerate(stack.detach()):
        weight = part.t() if experts.is_transposed else part
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        yield f"{index}.weight", leaf
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach()[index].contiguous(), requires_grad=False)
            yield f"{index}.bias", f"{leaf}_bias"
        linears.append(linear.train(experts.training))
    experts.add_module(leaf, linears)


@cache
def _unstacked_class(base: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``base`` that computes expert by expert."""
    members = {"forward": _forward, "is_unstacked": True, "__module__": base.__module__}
    return type(base.__name__, (base,), members)


def _forward(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Return the weighted sum of the routed experts' outputs, [tokens, hidden].

    Args:
        self: The layer of experts.
        hidden_states: [tokens, hidden].
        top_k_index: Experts of each token, integers [tokens, k].
        top_k_weights: Their weights, [tokens, k].
    """
    count = len(getattr(self, stacks_of(self)[0]))
    result = torch.zeros_like(hidden_states)
    if torch.compiler.is_exporting() or hidden_states.is_meta:
        for expert in range(count):
            share = (top_k_weights * (top_k_index == expert)).sum(dim=-1, keepdim=True)
            result = result + (one_expert(self, expert, hidden_states) * share).to(result.dtype)
        return result
    for expert in torch.unique(top_k_index).tolist():
        if expert < count:  # transformers sends tokens of another process to one beyond
            token, place = torch.where(top_k_index == expert)
            part = one_expert(self, expert, hidden_states[token])
            part = part * top_k_weights[token, place, None]
            result.index_add_(0, token, part.to(result.dtype))
    return result


def one_expert(self: Any, index: int, x: Tensor) -> Tensor:
    """Return what one expert makes of ``x`` [tokens, hidden]."""
    if self.has_gate:
        inner = self._apply_gate(self.gate_up_proj[index](x))
    else:
        inner = self.act_fn(self.up_proj[index](x))
    output: Tensor = self.down_proj[index](inner)
    return output
