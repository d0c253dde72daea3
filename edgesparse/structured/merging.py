"""Merge experts instead of dropping them: those that go move into those they are most like.

Experts are compared by what they give for the same tokens. Before two are averaged, weighted by
their importance (``experts.expert_importance``), the neurons of one are put into the order of the
other's: the pairs that are active together, best first (the alignment of Li et al. 2024, M-SMoE,
arXiv 2310.01334). Rows of the router are averaged with the same weights. The merged expert's last
layer is then refitted to what its experts gave together,

    W' = Y G H^T (H G H^T + λ)^-1        H inner activations, Y outputs, G squared router weights,

over the tokens sent to any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.capture.experts import one_expert
from edgesparse.structured.experts import (
    expert_importance,
    keep_experts,
    mixtures,
    require_enough,
    router_rows,
)
from edgesparse.structured.observing import Batches, observe

_TOKENS = 8192  # looked at in each mixture
_DAMPING = 1e-3


@dataclass(frozen=True)
class Routed:
    """Tokens as one mixture sees them.

    Attributes:
        hidden: [tokens, width].
        index: Experts of each token, [tokens, k].
        weights: What the router gives them, [tokens, k].
    """

    hidden: Tensor
    index: Tensor
    weights: Tensor

    def share(self, expert: int) -> Tensor:
        """Return the router weight of one expert for every token, 0 where it is not sent to it."""
        return (self.weights * (self.index == expert)).sum(dim=-1)


def merge_experts(module: nn.Module, batches: Batches, count: int) -> dict[str, dict[int, int]]:
    """Merge the ``count`` least important experts of every mixture into the others, in place.

    Returns:
        For every mixture the experts that went, each with the one it went into.

    Raises:
        UsageError: As for ``experts.drop_experts``.
    """
    importance = expert_importance(module, batches)
    for path in mixtures(module):
        require_enough(module, path, count)
    seen = _routed(module, batches)
    joined = {}
    for path, experts in mixtures(module).items():
        order = torch.argsort(importance[path], stable=True).tolist()
        gone, kept = sorted(order[:count]), sorted(order[count:])
        with torch.no_grad():
            joined[path] = _merge(module, path, experts, gone, kept, importance[path], seen[path])
        keep_experts(module, path, kept)
    return joined


def _merge(
    module: nn.Module,
    path: str,
    experts: nn.Module,
    gone: Sequence[int],
    kept: Sequence[int],
    importance: Tensor,
    seen: Routed,
) -> dict[int, int]:
    """Average every expert that goes into its nearest; return which that was."""
    outputs = {e: one_expert(experts, e, seen.hidden).flatten() for e in (*gone, *kept)}
    into = {
        e: max(kept, key=lambda k: float(functional.cosine_similarity(outputs[e], outputs[k], 0)))
        for e in gone
    }
    for target in sorted(set(into.values())):
        team = [target, *(e for e in gone if into[e] == target)]
        share = importance[team].clamp_min(0)
        share = share / share.sum() if float(share.sum()) else torch.ones(len(team)) / len(team)
        weights = [seen.share(e) for e in team]
        together = sum(
            outputs[e].view_as(seen.hidden) * w[:, None]
            for e, w in zip(team, weights, strict=True)
        )  # fmt: skip
        _average(experts, team, share, seen.hidden)
        for rows in router_rows(module, path):
            rows[target] = (
                (share.to(rows.dtype)[:, None] * rows[team].reshape(len(team), -1))
                .sum(dim=0)
                .view_as(rows[target])
            )
        assert isinstance(together, Tensor)
        _refit(experts, target, seen.hidden, together, torch.stack(weights).sum(dim=0))
    return into


def _average(experts: nn.Module, team: Sequence[int], share: Tensor, hidden: Tensor) -> None:
    """Give the first of a team the weighted mean of all, neurons in its own order."""
    target = _inner(experts, team[0], hidden)
    orders = [torch.arange(target.shape[1])]
    orders += [match_neurons(target, _inner(experts, e, hidden)) for e in team[1:]]
    stacks = {name: getattr(experts, name) for name in _first_and_last(experts)}
    first, last = stacks.values()
    for linears, dim in ((first, 0), (last, 1)):
        mean = torch.zeros_like(linears[team[0]].weight)
        for expert, part, order in zip(team, share, orders, strict=True):
            places = order if dim else _rows(experts, order)
            mean += part * linears[expert].weight.index_select(dim, places)
        linears[team[0]].weight.copy_(mean)
    for linears in (first, last):
        if linears[team[0]].bias is not None:
            _average_bias(experts, linears, team, share, orders if linears is first else None)


def _average_bias(
    experts: nn.Module,
    linears: Any,
    team: Sequence[int],
    share: Tensor,
    orders: Sequence[Tensor] | None,
) -> None:
    mean = torch.zeros_like(linears[team[0]].bias)
    for i, (expert, part) in enumerate(zip(team, share, strict=True)):
        bias = linears[expert].bias
        mean += part * (bias if orders is None else bias[_rows(experts, orders[i])])
    linears[team[0]].bias.copy_(mean)


def match_neurons(one: Tensor, other: Tensor) -> Tensor:
    """Return for every neuron of ``one`` that of ``other`` which is active like it.

    Args:
        one: Activations [tokens, neurons].
        other: Likewise, of as many neurons.

    Returns:
        A permutation, int64 [neurons]: the best pairs by correlation, each neuron once.
    """
    a, b = (functional.normalize(x.float() - x.float().mean(dim=0), dim=0) for x in (one, other))
    alike = a.T @ b
    order = torch.argsort(alike.flatten(), descending=True, stable=True).tolist()
    count = alike.shape[1]
    match: dict[int, int] = {}
    taken: set[int] = set()
    for pair in order:
        mine, yours = divmod(pair, count)
        if mine not in match and yours not in taken:
            match[mine] = yours
            taken.add(yours)
            if len(match) == count:
                break
    return torch.tensor([match[i] for i in range(count)])


def _refit(
    experts: nn.Module, expert: int, hidden: Tensor, together: Tensor, share: Tensor
) -> None:
    """Refit the last layer of a merged expert: share × output is to be what its team gave."""
    last = getattr(experts, _first_and_last(experts)[1])[expert]
    sent = share > 0
    inner = _inner(experts, expert, hidden[sent]).double() * share[sent, None]
    bias = 0 if last.bias is None else last.bias.double() * share[sent, None]
    if len(inner) < inner.shape[1]:
        return  # fewer tokens than unknowns
    H = inner.T @ inner
    H += _DAMPING * H.diagonal().mean().clamp_min(1e-12) * torch.eye(len(H))
    old = last.weight.double()
    missing = together[sent].double() - bias - inner @ old.T
    last.weight.copy_((old + torch.linalg.solve(H, inner.T @ missing).T).to(last.weight.dtype))


def _inner(experts: Any, expert: int, x: Tensor) -> Tensor:
    """Return the activations of an expert's neurons, [tokens, neurons]."""
    first = getattr(experts, _first_and_last(experts)[0])[expert](x)
    inner: Tensor = experts._apply_gate(first) if experts.has_gate else experts.act_fn(first)
    return inner


def _first_and_last(experts: Any) -> tuple[str, str]:
    return ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")


def _rows(experts: Any, order: Tensor) -> Tensor:
    """Return the rows of the first layer that make neurons in this order."""
    if not experts.has_gate:
        return order
    if experts.is_concatenated:
        return torch.cat([order, order + len(order)])
    return torch.stack([2 * order, 2 * order + 1], dim=1).flatten()


def _routed(module: nn.Module, batches: Batches) -> Mapping[str, Routed]:
    """Return what the first tokens look like to every mixture."""
    parts: dict[str, list[tuple[Tensor, ...]]] = {path: [] for path in mixtures(module)}

    def hook_of(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if sum(len(part[0]) for part in parts[path]) < _TOKENS:
                parts[path].append(tuple(value.detach() for value in args))

        return hook

    hooks = [e.register_forward_pre_hook(hook_of(path)) for path, e in mixtures(module).items()]
    observe(module, batches, hooks)
    return {
        path: Routed(*(torch.cat(values)[:_TOKENS] for values in zip(*found, strict=True)))
        for path, found in parts.items()
    }
