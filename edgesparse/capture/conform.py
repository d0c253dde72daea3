"""Replace layers that are linear under another name by ``nn.Linear``.

Two kinds exist in the wild: the ``Conv1D`` of GPT-2 and its relatives, whose weight is stored
[inputs, outputs], and stacks of experts (``experts.py``). Packed as they are, their rows would be
inputs or experts, and no calibration statistic (all are by input column) would fit. So the captured
module has ``nn.Linear`` in their place, and their weights are transposed or taken apart on reading:
from then on nothing needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from edgesparse.capture.experts import is_stack, unstack_experts


@dataclass(frozen=True)
class Conformed:
    """How the tensors of a conformed module come from those of the original.

    Attributes:
        transposed: Names of weights whose original is stored the other way round.
        parts: For the name of each part of a stack: the stack's name and the index in it.
    """

    transposed: frozenset[str] = frozenset()
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def original(self, name: str) -> str:
        """Return the name of the original tensor that holds ``name``."""
        return self.parts[name][0] if name in self.parts else name

    def take(self, name: str, original: Tensor) -> Tensor:
        """Return the tensor ``name``, a view of its original."""
        part = original[self.parts[name][1]] if name in self.parts else original
        return part.t() if name in self.transposed else part

    def shape(self, name: str, original: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor ``name`` from that of its original."""
        part = original[1:] if name in self.parts else original
        return part[::-1] if name in self.transposed else part


def conform(module: nn.Module) -> Conformed:
    """Replace them in place; say what became of the tensors.

    The modules' weights are moved, not copied: on the meta device nothing is computed.
    """
    replaced = {
        path: child
        for path, child in module.named_modules(remove_duplicate=False)
        if _is_transposed_linear(child)
    }
    linears = {id(child): _linear(child) for child in replaced.values()}
    for path, child in replaced.items():
        owner, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(owner), leaf, linears[id(child)])
    transposed = {f"{path}.weight" for path in replaced}
    inverted = {f"{p}." for p, c in module.named_modules() if is_stack(c) and c.is_transposed}
    parts = unstack_experts(module)
    transposed |= {
        name
        for name, (stack, _) in parts.items()
        if f"{stack.rpartition('.')[0]}." in inverted and name.endswith(".weight")
    }
    return Conformed(frozenset(transposed), parts)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether ``module`` is the Conv1D of transformers, told without importing transformers."""
    kind = type(module)
    return (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D")


def _linear(conv: nn.Module) -> nn.Linear:
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear.train(conv.training)
