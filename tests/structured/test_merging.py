"""Merging experts: what is the same function under another order of neurons stays that function."""

from __future__ import annotations

import pytest
import torch

import edgesparse
from edgesparse.errors import RecipeError, UsageError
from edgesparse.structured import Cuts, prune_structured, write_model
from edgesparse.structured.merging import match_neurons

transformers = pytest.importorskip("transformers")


def mixtral(experts_per_token):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=64, max_position_embeddings=32, num_local_experts=4,
        num_experts_per_tok=experts_per_token, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).eval()


def shuffle_copies(model):
    """Make every expert the first one, each with its neurons in an order of its own."""
    for layer in model.model.layers:
        stack = layer.mlp.experts
        with torch.no_grad():
            for i in range(1, 4):
                order = torch.randperm(12)
                rows = torch.cat([order, order + 12])
                stack.gate_up_proj[i] = stack.gate_up_proj[0][rows]
                stack.down_proj[i] = stack.down_proj[0][:, order]


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(64, (4, 32))} for _ in range(2)]


def test_neurons_that_are_active_together_are_a_pair():
    torch.manual_seed(2)
    one, order = torch.randn(50, 7), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    other = torch.empty_like(one)
    other[:, order] = 2 * one + 5  # size and mean say nothing about which it is
    assert match_neurons(one, other).tolist() == order.tolist()


def test_the_match_is_a_permutation_whatever_the_activations():
    match = match_neurons(torch.zeros(5, 6), torch.ones(5, 6))
    assert sorted(match.tolist()) == list(range(6))


@pytest.mark.parametrize("merged", [1, 2, 3])
def test_experts_that_compute_the_same_merge_without_loss(merged, inputs):
    model = mixtral(1)
    shuffle_copies(model)
    expected = model(**inputs[0]).logits
    small = prune_structured(edgesparse.load(model), Cuts(merged=merged), calibration=inputs)
    found = small.loader().float()(**inputs[0]).logits
    assert small.config["num_local_experts"] == 4 - merged
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_merging_two_a_token_is_written_and_read_again(inputs, tmp_path):
    small = prune_structured(edgesparse.load(mixtral(2)), Cuts(merged=2), calibration=inputs)
    write_model(small, tmp_path / "small")
    again = edgesparse.load(tmp_path / "small")
    assert again.config["num_local_experts"] == 2
    torch.testing.assert_close(
        again.loader()(**inputs[0]).logits, small.loader()(**inputs[0]).logits
    )


def test_a_token_needs_its_experts(inputs):
    with pytest.raises(UsageError, match="3 of 4 experts were to go, but a token is sent to 2"):
        prune_structured(edgesparse.load(mixtral(2)), Cuts(merged=3), calibration=inputs)


def test_a_negative_number_means_nothing():
    with pytest.raises(RecipeError, match="cannot be negative"):
        Cuts(merged=-1)
