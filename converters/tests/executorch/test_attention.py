"""Grouped attention against torch's own, heads repeated."""

from __future__ import annotations

import pytest
import torch
from edgesparse_converters.executorch.attention import (
    NAME,
    grouped_attention,
    use_grouped_attention,
)
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 5])
def test_it_is_torch_s_attention(heads: int, length: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, heads, length, 8)
    shared = max(1, heads // 3)
    key, value = torch.randn(1, shared, 9, 8), torch.randn(1, shared, 9, 8)
    visible = torch.arange(9) <= 3 + torch.arange(length)[:, None]
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
    for scaling in (None, 0.25):
        found, weights = grouped_attention(nn.Module(), query, key, value, mask, scaling=scaling)
        repeated = (tensor.repeat_interleave(heads // shared, dim=1) for tensor in (key, value))
        expected = functional.scaled_dot_product_attention(
            query, *repeated, attn_mask=visible[None, None], scale=scaling
        )
        assert weights is None
        assert torch.allclose(found, expected.transpose(1, 2), atol=1e-6)


def test_a_model_with_attention_of_its_own_keeps_it() -> None:
    for before, after in (("sdpa", NAME), ("eager", "eager")):
        model = nn.Module()
        model.config = type("Config", (), {"_attn_implementation": before})()  # type: ignore[assignment]
        use_grouped_attention(model)
        assert model.config._attn_implementation == after
