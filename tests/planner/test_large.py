"""A billion parameters are planned without weights and without the memory of weights."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

import edgesparse
from edgesparse.budget import Budget

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes there")
transformers = pytest.importorskip("transformers")


def test_a_billion_parameters_on_the_meta_device():
    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    captured = edgesparse.load(model)
    made = edgesparse.plan(captured, budget=Budget(file="500MB", peak="2GB"))
    assert captured.num_parameters > 1_200_000_000
    assert made.nbytes <= 500_000_000
    assert made.peak_nbytes <= 2_000_000_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000  # kilobytes; the weights alone would be 2.5 GB
