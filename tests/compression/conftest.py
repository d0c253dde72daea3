"""Models of every shape the driver knows, and a comparison bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.model import CapturedModel, CompressedModel

TOKENS = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(0))


def _llama(
    *, tied: bool = True, layers: int = 3, inner: int = 48, vocabulary: int = 60
) -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


class Nothing(nn.Module):
    """No chain: the second linear sees the sum of the first's input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x) + x)
        return y


@pytest.fixture
def llama() -> Callable[..., CapturedModel]:
    """Make a random Llama: ``tied`` or not, of so many ``layers``, of other sizes if wanted."""
    return _llama


@pytest.fixture
def unchained() -> CapturedModel:
    """Return a model that is no chain of blocks."""
    torch.manual_seed(0)
    return es.load(Nothing().eval(), example_inputs=torch.zeros(2, 16))


@pytest.fixture
def tokens() -> torch.Tensor:
    """Return 2,000 random tokens."""
    return TOKENS


@pytest.fixture
def same() -> Callable[[CompressedModel, CompressedModel], None]:
    """Assert that two models are the same to the bit, measured errors included."""

    def check(one: CompressedModel, other: CompressedModel) -> None:
        assert list(one.packed) == list(other.packed)
        for name, packed in one.packed.items():
            assert packed.spec == other.packed[name].spec
            for buffer, value in packed.buffers.items():
                assert np.array_equal(value, other.packed[name].buffers[buffer]), name
        assert one.errors == other.errors
        assert list(one.kept) == list(other.kept)

    return check
