"""Remove experts of a mixture, with their rows of the router, or route to fewer of them.

An expert's importance is what it adds: router weight × norm of its output, summed over the
calibration tokens sent to it, which is frequency × mean contribution (Lasby et al. 2025, REAP,
arXiv 2510.13999). Which modules are mixtures is known from ``capture.experts``; the router's
tensors are those beside it that have a row for each expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.capture.experts import is_unstacked, one_expert, stacks_of
from edgesparse.errors import UsageError
from edgesparse.structured.observing import Batches, observe

# What transformers' configurations and routers call the number of experts a token is sent to.
TOP_K = frozenset(
    {"top_k", "topk", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k"}
)


def mixtures(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of experts by path.

    Raises:
        UsageError: There are none.
    """
    found = {path: child for path, child in module.named_modules() if is_unstacked(child)}
    if not found:
        raise UsageError("the model has no mixture of experts that can be taken apart")
    return found


def count_of(experts: nn.Module) -> int:
    """Return the number of experts of a layer."""
    return len(getattr(experts, stacks_of(experts)[0]))


def drop_experts(module: nn.Module, batches: Batches, count: int) -> dict[str, tuple[int, ...]]:
    """Remove the ``count`` least important experts of every mixture, in place.

    Returns:
        For every mixture the experts removed, ascending.

    Raises:
        UsageError: No mixture, or fewer experts would stay than a token is sent to.
    """
    gone = {}
    importance = expert_importance(module, batches)
    for path in mixtures(module):
        require_enough(module, path, count)
        order = torch.argsort(importance[path], stable=True)
        gone[path] = tuple(sorted(order[:count].tolist()))
        keep_experts(module, path, sorted(order[count:].tolist()))
    return gone


def require_enough(module: nn.Module, path: str, count: int) -> None:
    """Refuse to take more experts from a mixture than its tokens can spare.

    Raises:
        UsageError: Fewer would stay than a token is sent to.
    """
    total = count_of(module.get_submodule(path))
    least = max(_numbers(module, path, TOP_K), default=1)
    if total - count < least:
        raise UsageError(
            f"{path}: {count} of {total} experts were to go, but a token is sent to {least}; "
            "remove fewer, or lower top_k"
        )


def expert_importance(module: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Return the summed ``router weight × |output|`` of every expert, by mixture."""
    found = mixtures(module)
    scores = {path: torch.zeros(count_of(experts)) for path, experts in found.items()}

    def hook_of(path: str) -> Any:
        def hook(experts: nn.Module, args: tuple[Tensor, ...]) -> None:
            hidden, index, weights = args
            for expert in torch.unique(index).tolist():
                token, place = torch.where(index == expert)
                norm = one_expert(experts, expert, hidden[token]).float().norm(dim=-1)
                scores[path][expert] += float((weights[token, place] * norm).sum())

        return hook

    hooks = [experts.register_forward_pre_hook(hook_of(path)) for path, experts in found.items()]
    observe(module, batches, hooks)
    return scores


def lower_top_k(module: nn.Module, top_k: int) -> int:
    """Send every token to ``top_k`` experts, in place; return to how many it was before.

    Raises:
        UsageError: No mixture, no such number in its router, or one that is not lower.
    """
    before = {value for path in mixtures(module) for value in _numbers(module, path, TOP_K)}
    if len(before) != 1 or not 1 <= top_k <= (old := before.pop()):
        raise UsageError(
            f"top_k is {top_k}; expected a whole number from 1 to what the router uses now"
            + (f", {old}" if not before else " (none was found)")
        )
    for child in module.modules():  # models repeat it outside of their routers
        for name in TOP_K & vars(child).keys():
            if vars(child)[name] == old:
                setattr(child, name, top_k)
    return old


def router_rows(module: nn.Module, path: str) -> Iterator[Tensor]:
    """Yield the tensors beside a mixture that have a row for each expert; theirs to change."""
    total = count_of(module.get_submodule(path))
    for child in _neighbours(module, path):
        for tensor in (*child._parameters.values(), *child._buffers.values()):
            if tensor is not None and tensor.dim() and len(tensor) == total:
                yield tensor.data


def keep_experts(module: nn.Module, path: str, kept: list[int]) -> None:
    """Keep some experts of one mixture, their rows of the router, and the numbers that say so."""
    experts = module.get_submodule(path)
    total = count_of(experts)
    for stack in stacks_of(experts):
        linears = getattr(experts, stack)
        setattr(experts, stack, nn.ModuleList(linears[i] for i in kept))
    rows = torch.tensor(kept)
    for child in _neighbours(module, path):
        for places in (child._parameters, child._buffers):
            for leaf, tensor in places.items():
                if tensor is not None and tensor.dim() and len(tensor) == total:
                    part = tensor.detach()[rows].clone()
                    setattr(
                        child,
                        leaf,
                        nn.Parameter(part, False) if places is child._parameters else part,
                    )
        for name, value in list(vars(child).items()):
            if type(value) is int and value == total:
                setattr(child, name, len(kept))


def _neighbours(module: nn.Module, path: str) -> Iterator[nn.Module]:
    """Yield the mixture, the module around it, and what stands beside it: the router."""
    experts = module.get_submodule(path)
    parent = module.get_submodule(path.rpartition(".")[0])
    yield experts
    yield parent
    for child in parent.children():
        if child is not experts and not any(is_unstacked(inner) for inner in child.modules()):
            yield from child.modules()


def _numbers(module: nn.Module, path: str, names: frozenset[str]) -> set[int]:
    return {
        vars(child)[name]
        for child in _neighbours(module, path)
        for name in names & vars(child).keys()
        if type(vars(child)[name]) is int
    }
