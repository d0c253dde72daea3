"""Mixtures of experts as one operator: the experts a token is not sent to are neither read nor run.

A traced graph cannot branch on values, so written in stock operators every expert meets every token
and the results of the others are weighed by zero. ``edgesparse::routed`` takes the packed weights
of all experts and multiplies row r of x with the weight ``indices[r]``. With k experts a token::

    x [T, H] -> each row k times [T k, H] -> routed -> gate -> routed -> weigh, add k rows -> [T, H]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from edgesparse.capture.experts import is_unstacked, stacks_of
from edgesparse_converters.executorch.arithmetic import packed_linear
from edgesparse_converters.executorch.operators import PackedLinear, buffers_to_codes

ROUTED = "edgesparse::routed.out"

_ARGUMENTS = (
    "Tensor x, Tensor indices, Tensor[] buffers, str formats, SymInt[] shape, "
    "SymInt[] group_sizes, str activations, Tensor? bias=None"
)
_library = torch.library.Library("edgesparse", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(f"routed({_ARGUMENTS}) -> Tensor")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    f"routed.out({_ARGUMENTS}, *, Tensor(a!) out) -> Tensor(a!)"
)


@torch.library.impl(_library, "routed", "CPU")
def _routed(
    x: Tensor,
    indices: Tensor,
    buffers: Sequence[Tensor],
    formats: str,
    shape: Sequence[int],
    group_sizes: Sequence[int],
    activations: str,
    bias: Tensor | None = None,
) -> Tensor:
    result = x.new_zeros(len(x), shape[0])
    rest = list(buffers)
    for weight, (name, group_size) in enumerate(zip(formats.split(","), group_sizes, strict=True)):
        codes = buffers_to_codes(rest, name, shape, group_size)
        chosen = indices == weight
        added = None if bias is None else bias[weight]
        result[chosen] = packed_linear(x[chosen], codes, added, activations)
    return result


@torch.library.register_fake("edgesparse::routed", lib=_library)
def _routed_shape(
    x: Tensor,
    indices: Tensor,
    buffers: Sequence[Tensor],
    formats: str,
    shape: Sequence[int],
    group_sizes: Sequence[int],
    activations: str,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], shape[0])


class RoutedLinear(nn.Module):
    """The same linear layer of all experts.

    Args:
        linears: One of each expert, of one shape and kind of activations.
    """

    bias: Tensor | None

    def __init__(self, linears: Sequence[PackedLinear]) -> None:
        super().__init__()
        first = linears[0]
        self.shape, self.activations = first.shape, first.activations
        self.formats = ",".join(linear.format for linear in linears)
        self.group_sizes = [linear.group_size for linear in linears]
        buffers = [buffer for linear in linears for buffer in linear.packed]
        self.names = [f"packed_{i}" for i in range(len(buffers))]
        for name, buffer in zip(self.names, buffers, strict=True):
            self.register_buffer(name, buffer)
        biases = [bias for linear in linears if isinstance(bias := linear.bias, Tensor)]
        self.register_buffer("bias", torch.stack(biases) if biases else None)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return float32 ``[R, N]`` for float32 ``[R, K]`` and experts, int64 ``[R]``."""
        packed = [self.get_buffer(name) for name in self.names]
        y: Tensor = torch.ops.edgesparse.routed(
            x, indices, packed, self.formats, self.shape, self.group_sizes, self.activations,
            self.bias,
        )  # fmt: skip
        return y


class RoutedExperts(nn.Module):
    """A layer of experts of which each token meets its own.

    Args:
        first: From hidden states to the inner width.
        gate: What is done to its result.
        second: Back to hidden states.
    """

    def __init__(
        self, first: RoutedLinear, gate: Callable[[Tensor], Tensor], second: RoutedLinear
    ) -> None:
        super().__init__()
        self.first, self.second, self._gate = first, second, gate

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the routed experts' outputs, [tokens, hidden].

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: Experts of each token, int64 [tokens, k].
            top_k_weights: Their weights, [tokens, k].
        """
        tokens, count = top_k_index.shape
        indices = top_k_index.reshape(-1)
        repeated = hidden_states[:, None].expand(tokens, count, -1).reshape(tokens * count, -1)
        outputs = self.second(self._gate(self.first(repeated, indices)), indices)
        weighted: Tensor = outputs.reshape(tokens, count, -1) * top_k_weights[..., None]
        return weighted.sum(dim=1)


def route_experts(module: nn.Module) -> None:
    """Replace every layer of packed experts in ``module``; one that cannot be routed stays.

    Those are experts that are not all packed, or not for the same kind of activations.
    """
    for path, experts in list(module.named_modules()):
        if not is_unstacked(experts):
            continue
        stacks = [list(getattr(experts, name)) for name in stacks_of(experts)]
        if len(stacks) == 2 and all(_alike(stack) for stack in stacks):
            gate = experts._apply_gate if experts.has_gate else experts.act_fn
            for name in stacks_of(experts):
                delattr(experts, name)
            parent, _, child = path.rpartition(".")
            routed = RoutedExperts(RoutedLinear(stacks[0]), gate, RoutedLinear(stacks[1]))
            setattr(module.get_submodule(parent), child, routed)


def _alike(stack: Sequence[nn.Module]) -> bool:
    """Whether one operator can hold these layers."""
    kinds = {
        (tuple(linear.shape), linear.activations, linear.bias is None)
        for linear in stack
        if isinstance(linear, PackedLinear)
    }
    return len(kinds) == 1 and all(isinstance(linear, PackedLinear) for linear in stack)
