"""Attention over a cache without copies of it: query heads that share keys are rows of one product.

transformers repeats keys and values for every query head and scales both factors, which in a
program are copies of the whole cache, several a layer and token. Here, with H query heads over C
cached heads, query heads of a group stand below each other::

    q [1, H, T, D]  ->  [1, C, H / C * T, D]
    p = softmax(k (q s)' + mask),  y = p' v        k, v [1, C, S, D] as they lie in the cache
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAME = "edgesparse_grouped"


def use_grouped_attention(model: nn.Module) -> None:
    """Let a transformers model that calls torch's attention call this one; any other stays.

    The two agree up to the order of additions.
    """
    config: Any = model.config
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)  # to be added: 0 or the least float
    config._attn_implementation = NAME


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
    rows = query.reshape(batch, shared, group * length, width)
    rows = rows * (width**-0.5 if scaling is None else scaling)
    # The cache is the left factor as it lies there; what is transposed is small.
    scores = torch.matmul(key, rows.transpose(2, 3)).transpose(2, 3)
    if attention_mask is not None:
        mask = attention_mask[..., :cached].expand(batch, 1, length, cached)
        scores = scores + torch.cat([mask] * group, dim=2)
    output = torch.matmul(torch.softmax(scores, dim=-1), value)
    return output.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None
