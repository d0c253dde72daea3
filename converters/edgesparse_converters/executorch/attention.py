"""Attention over a cache without copies of it: query heads that share keys are rows of one product.

transformers repeats keys and values for every query head and scales both factors, which in a
program are copies of the whole cache, several a layer and token. Here, with H query heads over C
cached heads, query heads of a group stand below each other::

    q [1, H, T, D]  ->  [1, C, H / C * T, D]
    p = softmax(k (q s)' + mask),  y = p' v        k, v [1, C, S, D] as they lie in the cache
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

NAME = "edgesparse_grouped"
_OURS: set[str] = set()


def use_grouped_attention(model: nn.Module) -> bool:
    """Let a transformers model that calls torch's attention call this one; any other stays.

    The two agree up to the order of additions.
    """
    return use_attention(model, NAME, grouped_attention)


def use_attention(model: nn.Module, name: str, attention: Callable[..., Any]) -> bool:
    """Register ``attention`` under ``name`` and let ``model`` call it with a mask of floats.

    Returns:
        Whether the model calls it; False for one that has attention of its own.
    """
    config: Any = model.config
    if getattr(config, "_attn_implementation", None) not in ("sdpa", *_OURS):
        return False
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, eager_mask)  # to be added: 0 or the least float
    config._attn_implementation = name
    _OURS.add(name)
    return True


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_rest: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output [B, T, H, D].

    Args:
        module: The layer; not used.
        query: [B, H, T, D].
        key: [B, C, S, D], C a divisor of H.
        value: [B, C, S, D].
        attention_mask: float [B, 1, T, S] to add to the scores, or None.
        scaling: Of the scores; None is ``D ** -0.5``.
    """
    batch, heads, length, width = query.shape
    shared, cached = key.shape[1:3]
    group = heads // shared
    rows = query.reshape(batch * shared, group * length, width)
    rows = rows * (width**-0.5 if scaling is None else scaling)
    keys, values = (x.reshape(batch * shared, x.shape[2], x.shape[3]) for x in (key, value))
    # ``bmm``: ``matmul`` of four dimensions copies the whole cache to expand it to its own shape.
    # The cache is the left factor as it lies there; what is transposed is small.
    scores = torch.bmm(keys, rows.transpose(1, 2)).transpose(1, 2)
    if attention_mask is not None:
        mask = attention_mask[..., :cached].expand(batch, 1, length, cached)
        added = torch.cat([mask] * group, dim=2).expand(batch, shared, group * length, cached)
        scores = scores + added.reshape(batch * shared, group * length, cached)
    output = torch.bmm(torch.softmax(scores, dim=-1), values)
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None
