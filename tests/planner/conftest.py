"""The language model that plans are made for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import edgesparse as es
from edgesparse.model import CapturedModel


@pytest.fixture(scope="package")
def random_llama() -> Callable[..., CapturedModel]:
    """Make a random Llama of two layers in float16, its embeddings ``tied`` or not."""
    transformers = pytest.importorskip("transformers")

    def make(*, tied: bool) -> CapturedModel:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=512, max_position_embeddings=128,
            tie_word_embeddings=tied,
        )  # fmt: skip
        return es.load(transformers.LlamaForCausalLM(config).half().eval())

    return make
