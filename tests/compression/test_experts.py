"""Mixtures of experts through the pipeline: layers that only routed tokens reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgesparse as es
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.runtime.modules import build_decoded, build_packed

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
TOKENS = torch.arange(48).reshape(4, 12)


def mixtral(experts_per_token: int) -> CapturedModel:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_local_experts=6,
        num_experts_per_tok=experts_per_token, tie_word_embeddings=True, **SIZES,
    )  # fmt: skip
    return es.load(transformers.MixtralForCausalLM(config).eval())


def switch() -> CapturedModel:
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(
        d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2,
        num_experts=4, vocab_size=64, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    )  # fmt: skip
    return es.load(transformers.SwitchTransformersForConditionalGeneration(config).eval())


def compressed(captured: CapturedModel, calibration: Any, method: str) -> CompressedModel:
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), bits=4, group_size=32, method=method)
    return es.compress(captured, es.plan(captured, es.Recipe((rule,))), calibration)


@pytest.mark.parametrize("experts_per_token", [1, 2])
@pytest.mark.parametrize("method", ["wanda", "admm"])
def test_every_expert_is_packed_and_computes(
    method: str, experts_per_token: int, tmp_path: Path
) -> None:
    captured = mixtral(experts_per_token)
    small = compressed(captured, TOKENS, method)
    experts = [t.name for t in captured.tensors if t.kind is TensorKind.EXPERT]
    assert len(experts) == 2 * 2 * 6
    assert set(experts) <= set(small.packed)
    again = CompressedModel.load(small.save(tmp_path / "small"), source=captured)
    with torch.no_grad():
        expected = build_decoded(small)(input_ids=TOKENS).logits
        found = build_packed(again)(input_ids=TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_expert_is_measured_on_its_own_tokens() -> None:
    """With one token, an expert it is not routed to has no inputs: no error on them either."""
    captured = mixtral(1)
    one = compressed(captured, torch.tensor([[7]]), "magnitude")
    every = compressed(captured, TOKENS, "magnitude")
    experts = [t.name for t in captured.tensors if t.kind is TensorKind.EXPERT]
    seen = [name for name in experts if ".layers.0." in name and "gate_up" in name]
    assert len({one.errors[name] for name in seen}) == len(seen)
    assert any(one.errors[name] != every.errors[name] for name in seen)


def test_switch_transformers_go_through() -> None:
    captured = switch()
    batch = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    small = compressed(captured, [batch], "admm")
    with torch.no_grad():
        expected = build_decoded(small)(**batch).logits
        found = build_packed(small)(**batch).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
