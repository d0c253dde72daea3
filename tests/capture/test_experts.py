"""Experts as layers of their own: the same sums, tensor by tensor what the stack held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from edgesparse import load
from edgesparse.model import CapturedModel, TensorKind

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "head_dim": 16,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "mixtral": transformers.MixtralConfig(**SMALL),
    "mixtral, one expert a token": transformers.MixtralConfig(**SMALL, num_experts_per_tok=1),
    # Stored [experts, in, out] with gate and up interleaved, and biases.
    "gpt-oss": transformers.GptOssConfig(**SMALL, num_experts_per_tok=2),
    "qwen3": transformers.Qwen3MoeConfig(
        **{k: v for k, v in SMALL.items() if k != "num_local_experts"},
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
    ),
}  # fmt: skip
TOKENS = torch.arange(24).reshape(2, 12)


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]
    config.use_cache = False
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms too: zeros hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def experts_of(captured: CapturedModel) -> list[str]:
    return [tensor.name for tensor in captured.tensors if tensor.kind is TensorKind.EXPERT]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_outputs_from_layers_of_their_own(name: str) -> None:
    model = model_of(name)
    captured = load(model)
    assert len(experts_of(captured)) == 2 * 2 * 4  # layers, up and down, experts
    with torch.no_grad():
        expected, found = model(TOKENS).logits, captured.loader()(TOKENS).logits
    # Not bit for bit: a product of transposed memory sums in another order.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_traced_model_computes_the_same_without_branches() -> None:
    model = model_of("mixtral")
    module = load(model).loader()
    program = torch.export.export(module, (TOKENS,), strict=False)
    with torch.no_grad():
        expected = model(TOKENS).logits
        torch.testing.assert_close(program.module()(TOKENS).logits, expected, atol=1e-5, rtol=1e-5)


def test_every_part_is_the_slice_of_its_stack() -> None:
    model = model_of("gpt-oss")
    captured = load(model)
    weights, stacked = captured.weights(), model.model.layers[1].mlp.experts
    path = "model.layers.1.mlp.experts"
    for expert in range(4):
        up = f"{path}.gate_up_proj.{expert}"
        assert torch.equal(weights[f"{up}.weight"], stacked.gate_up_proj[expert].t())
        assert torch.equal(weights[f"{up}.bias"], stacked.gate_up_proj_bias[expert])
        down = weights[f"{path}.down_proj.{expert}.weight"]
        assert torch.equal(down, stacked.down_proj[expert].t())


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_directories_hold_the_same_tensors(name: str, tmp_path: Any) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path)
    live, stored = load(model), load(tmp_path)
    assert {t.name for t in stored.tensors} == {t.name for t in live.tensors}
    expected, found = live.weights(), stored.weights()
    assert all(torch.equal(found[name], expected[name]) for name in experts_of(stored))


def test_only_routed_experts_run_and_only_on_their_tokens() -> None:
    model = model_of("mixtral, one expert a token")
    module = load(model).loader()
    rows: dict[str, int] = {}
    for path, child in module.named_modules():
        if ".experts.gate_up_proj." in path:
            child.register_forward_hook(
                lambda _, args, __, path=path: rows.__setitem__(path, len(args[0]))
            )
    with torch.no_grad():
        module(TOKENS[:1, :1])
    assert len(rows) == 2  # one expert in each of two layers
    rows.clear()
    with torch.no_grad():
        module(TOKENS)
    assert sum(rows.values()) == 2 * TOKENS.numel()
    assert all(rows.values())


def test_the_captured_model_is_not_changed() -> None:
    model = model_of("mixtral")
    load(model).loader()
    assert model.model.layers[0].mlp.experts.gate_up_proj.shape == (4, 48, 32)
