"""Replace layers that are linear under another name by ``nn.Linear``.

One such layer exists in the wild: the ``Conv1D`` of GPT-2 and its relatives, whose weight is stored
[inputs, outputs]. Packed as it is, its rows would be inputs, and no calibration statistic (all are
by input column) would fit. So the captured module has an ``nn.Linear`` of the same path in its
place and its weight is transposed once, on reading: from then on nothing needs to know.
"""

from __future__ import annotations

from torch import nn


def conform(module: nn.Module) -> frozenset[str]:
    """Replace them in place; return the names of the weights that are now transposed.

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
    return frozenset(f"{path}.weight" for path in replaced)


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
