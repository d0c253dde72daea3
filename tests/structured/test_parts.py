"""Whole layers and experts: those that do nothing go first, and then nothing has changed."""

from __future__ import annotations

import pytest
import torch

import edgesparse
from edgesparse.errors import UsageError
from edgesparse.model import TensorKind
from edgesparse.structured import Cuts, prune_structured, write_model
from edgesparse.structured.layers import layer_influence, layers_of

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
TOKENS = torch.tensor([[5, 9, 33]])


def llama(layers=4):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(intermediate_size=48, num_hidden_layers=layers, **SMALL)
    return transformers.LlamaForCausalLM(config).eval()


def mixtral(experts_per_token=2):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        intermediate_size=24, num_hidden_layers=2, num_local_experts=8,
        num_experts_per_tok=experts_per_token, **SMALL,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).eval()


def logits(module, tokens=TOKENS):
    with torch.no_grad():
        return module(input_ids=tokens, use_cache=False).logits


class TestLayers:
    def test_layers_that_do_nothing_go_first(self, tmp_path):
        model = llama()
        for index in (1, 2):
            model.model.layers[index].self_attn.o_proj.weight.data.zero_()
            model.model.layers[index].mlp.down_proj.weight.data.zero_()
        small = prune_structured(edgesparse.load(model), Cuts(layers=2))
        assert small.config["num_hidden_layers"] == 2
        torch.testing.assert_close(logits(small.loader()), logits(model))
        again = edgesparse.load(write_model(small, tmp_path / "small"))
        torch.testing.assert_close(logits(again.loader()), logits(model))

    def test_the_layers_that_stay_find_their_place_in_a_cache(self, tmp_path):
        small = prune_structured(edgesparse.load(llama()), Cuts(layers=2))
        module = small.loader()
        assert [layer.self_attn.layer_idx for layer in module.model.layers] == [0, 1]

    def test_influence_is_one_minus_the_cosine(self):
        model = llama(2)
        batch = {"input_ids": TOKENS, "use_cache": False}
        found = layer_influence(model, layers_of(model, batch), [batch])
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        first = 1 - torch.cosine_similarity(states[0], states[1], dim=-1).mean()
        torch.testing.assert_close(found[0], first)

    @pytest.mark.parametrize("count", [4, 9])
    def test_one_layer_stays(self, count):
        with pytest.raises(UsageError, match="one must stay"):
            prune_structured(edgesparse.load(llama()), Cuts(layers=count))

    def test_a_model_without_layers_says_so(self):
        captured = edgesparse.load(torch.nn.Linear(8, 8), example_inputs=torch.zeros(1, 8))
        with pytest.raises(UsageError, match="no layers"):
            prune_structured(captured, Cuts(layers=1))


class TestExperts:
    @pytest.mark.parametrize("experts_per_token", [1, 2])
    def test_experts_no_token_is_sent_to_go_first(self, experts_per_token, tmp_path):
        model = mixtral(experts_per_token)
        captured = edgesparse.load(model)
        spare = 8 - 3 * experts_per_token  # three tokens
        inputs = [{"input_ids": TOKENS, "use_cache": False}]
        small = prune_structured(captured, Cuts(experts=spare), calibration=inputs)
        experts = [t for t in small.tensors if t.kind is TensorKind.EXPERT]
        assert len(experts) == 2 * 2 * (8 - spare)
        torch.testing.assert_close(logits(small.loader()), logits(model))
        again = edgesparse.load(write_model(small, tmp_path / "small"))
        assert again.config["num_local_experts"] == 8 - spare
        torch.testing.assert_close(logits(again.loader()), logits(model))

    def test_fewer_experts_a_token(self, tmp_path):
        one, two = mixtral(1), mixtral(2)
        two.load_state_dict(one.state_dict())
        small = prune_structured(edgesparse.load(two), Cuts(top_k=1))
        torch.testing.assert_close(logits(small.loader()), logits(one))
        again = edgesparse.load(write_model(small, tmp_path / "small"))
        assert again.config["num_experts_per_tok"] == 1
        torch.testing.assert_close(logits(again.loader()), logits(one))

    def test_a_token_needs_its_experts(self):
        with pytest.raises(UsageError, match="a token is sent to 2"):
            prune_structured(edgesparse.load(mixtral()), Cuts(experts=7))

    @pytest.mark.parametrize("top_k", [0, 3])
    def test_top_k_can_only_be_lowered(self, top_k):
        with pytest.raises(UsageError, match="top_k"):
            prune_structured(edgesparse.load(mixtral()), Cuts(top_k=top_k))

    def test_a_model_without_experts_says_so(self):
        with pytest.raises(UsageError, match="no mixture"):
            prune_structured(edgesparse.load(llama()), Cuts(experts=1))
