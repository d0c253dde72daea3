"""Activation-aware scaling: where it can be folded, that nothing else changes, and what it wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import edgesparse as es
from edgesparse.calibrate import Statistics
from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.quantize.grid import Grid
from edgesparse.runtime.modules import build_decoded, build_packed
from edgesparse.scaling import best_factors, find_folds

TOKENS = torch.randint(0, 60, (16, 16), generator=torch.Generator().manual_seed(0))


def llama() -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64, initializer_range=0.2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # a few channels much louder than the others, as large models have them
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[::13] *= 20
    return es.load(model.half())


def bert() -> CapturedModel:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    return es.load(BertModel(config).eval())


def gpt2() -> CapturedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=60, n_positions=64)
    return es.load(GPT2LMHeadModel(config).eval())


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    return llama()


def plan_of(captured: CapturedModel) -> es.Plan:
    rule = es.Rule(kind=TensorKind.LINEAR, bits=4, group_size=32, quantizer="rtn")
    return es.plan(captured, es.Recipe((rule,)))


def run(captured: CapturedModel, *, scales: bool) -> CompressedModel:
    plan = plan_of(captured)
    return es.compress(captured, plan, TOKENS, scales_activations=scales)


@pytest.fixture(scope="module")
def scaled(captured: CapturedModel) -> CompressedModel:
    return run(captured, scales=True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (llama, {"self_attn.q_proj": "input_layernorm", "self_attn.o_proj": "self_attn.v_proj",
                 "mlp.gate_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"}),
        # Norms behind the residual are read by it too, and GELU takes no factor through.
        (bert, {"attention.output.dense": "attention.self.value"}),
        (gpt2, {"attn.c_attn": "ln_1", "mlp.c_fc": "ln_2"}),
    ],
)  # fmt: skip
def test_folds_are_found_by_what_the_model_does(
    build: Callable[[], CapturedModel], wanted: dict[str, str]
) -> None:
    captured = build()
    model = captured.loader().float()
    before = {name: p.clone() for name, p in model.named_parameters()}
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    found = find_folds(model, {"input_ids": TOKENS}, linear, captured)
    layers = len({f.consumers[0].split("layers.")[-1].split(".")[0] for f in found})
    assert len(found) == len(wanted) * (layers if build is llama else 1)
    for fold in found:
        (consumer,) = (end for end in wanted if fold.consumers[0].endswith(end))
        assert fold.producer.endswith(wanted[consumer])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_loud_channels_cost_less(captured: CapturedModel, scaled: CompressedModel) -> None:
    plain, wanted = run(captured, scales=False), logits(captured.loader().float())
    error = [float((logits(build_decoded(m)) - wanted).square().mean()) for m in (plain, scaled)]
    assert error[1] < 0.8 * error[0]
    assert sum(scaled.errors.values()) < 0.8 * sum(plain.errors.values())
    assert scaled.nbytes == plain.nbytes


def test_the_result_is_one_model_and_the_source_is_as_it_was(
    captured: CapturedModel, scaled: CompressedModel, tmp_path: Path
) -> None:
    stored = llama().weights()
    assert all(torch.equal(value, stored[name]) for name, value in captured.weights().items())
    changed = [n for n, value in scaled.kept.items() if not torch.equal(value, stored[n])]
    assert changed == scaled.metadata["scaled"]
    assert all("layernorm" in name for name in changed)
    assert all(scaled.kept[name].dtype == stored[name].dtype for name in changed)
    again = CompressedModel.load(scaled.save(tmp_path / "model"), source=captured)
    assert torch.equal(logits(build_decoded(again)), logits(build_decoded(scaled)))
    torch.testing.assert_close(
        logits(build_packed(scaled)), logits(build_decoded(scaled)), rtol=1e-3, atol=1e-3
    )


def test_with_nothing_rounded_nothing_is_scaled(captured: CapturedModel) -> None:
    rule = es.Rule(kind=TensorKind.LINEAR, pattern=es.Pattern(sparsity=0.5), method="magnitude")
    plan = es.plan(captured, es.Recipe((rule,)))
    small = es.compress(captured, plan, TOKENS, scales_activations=True)
    assert small.metadata["scaled"] == []


def test_it_needs_inputs(captured: CapturedModel) -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        es.compress(captured, plan_of(captured), scales_activations=True)


def test_by_hand_equal_inputs_need_no_factors_and_dead_ones_get_none() -> None:
    weight = {"w": torch.randn(8, 16, generator=torch.Generator().manual_seed(0))}
    grid, source = {"w": Grid(bits=4, group_size=16)}, torch.arange(16)
    alike = Statistics(columns=16, samples=4, hessian=torch.eye(16))
    assert best_factors(weight, grid, alike, source) is None
    dead = replace(alike, hessian=torch.zeros(16, 16))
    assert best_factors(weight, grid, dead, source) is None
    loud = torch.eye(16)
    loud[3, 3] = 1e4
    factors = best_factors(weight, grid, replace(alike, hessian=loud), source)
    assert factors is not None
    assert int(factors.argmax()) == 3
    shared = best_factors(weight, grid, replace(alike, hessian=loud), source % 8)
    assert shared is not None
    assert shared.shape == (8,)
    assert int(shared.argmax()) == 3
