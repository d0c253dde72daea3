"""Let the units that stay stand in for those that go.

Every linear reader is refitted to its old outputs,

    W' = W H[:, keep] (H[keep, keep] + λ)⁻¹      with H = XᵀX of its inputs,

which is the least-squares solution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.structured.groups import Group, Part
from edgesparse.structured.observing import Batches, observe
from edgesparse.structured.surgery import kept_positions

_DAMPING = 1e-4


def refit_readers(
    module: nn.Module, keep: Mapping[Group, Tensor], moments: Mapping[str, Tensor]
) -> None:
    """Move what the removed units gave into the columns of those that stay; nothing is cut yet."""
    kept = kept_positions(keep)
    tied = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for reader in {reader for group in keep for reader in group.readers}:
        weight = module.get_parameter(reader.name)
        if reader.name not in moments or reader.dim != 1 or id(weight) in tied:
            continue  # a head tied to the embedding cannot change without it
        columns, H = kept[reader.name, 1], moments[reader.name].double()
        inner = H[columns][:, columns]
        strength = _DAMPING * inner.diagonal().mean().clamp_min(1e-12)
        inner = inner + strength * torch.eye(len(columns))
        target = weight.detach().double() @ H[:, columns]
        weight.data[:, columns] = torch.linalg.solve(inner, target.T).T.float()


def rescale_norms(module: nn.Module, keep: Mapping[Group, Tensor], batches: Batches) -> None:
    """Give norms over fewer units weights with which those that stay keep their size.

    A norm divides by the root mean square of its inputs; without some of them it is another.
    """
    kept = kept_positions({g: u for g, u in keep.items() if g.part is Part.WIDTH})
    sums: dict[str, Tensor] = {}

    def hook_of(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            energy = args[0].detach().float().square().flatten(0, -2)
            ratio = energy[:, kept[name, 0]].mean(dim=1) / energy.mean(dim=1).clamp_min(1e-12)
            total = torch.stack([ratio.sum(), torch.tensor(float(len(ratio)))])
            sums[name] = sums.get(name, torch.zeros(2)) + total

        return hook

    hooks = []
    for name, dim in kept:
        owner = module.get_submodule(name.rpartition(".")[0])
        if dim == 0 and name.endswith("weight") and owner.get_parameter("weight").dim() == 1:
            hooks.append(owner.register_forward_pre_hook(hook_of(name)))
    observe(module, batches, hooks)
    for name, (total, count) in sums.items():
        module.get_parameter(name).data *= float((total / count).sqrt())
