"""``compress``: what comes out of it, for language models, encoders, convolutions and bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.batchnorm import fold
from edgesparse.compression import Progress, compress, compress_dense_alternative
from edgesparse.errors import CalibrationError, UsageError
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.runtime.modules import build_decoded

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKENS = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(0))


def language_model(*, tied: bool = True) -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


def encoder() -> CapturedModel:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    return es.load(BertModel(config).eval())


def vision() -> CapturedModel:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=8,
    )  # fmt: skip
    return es.load(ViTModel(config).eval())


def cnn() -> CapturedModel:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip
    return es.load(model, example_inputs=torch.zeros(2, 3, 16, 16))


def images(captured: CapturedModel) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    name = next(n for n, v in captured.example_inputs.items() if v.is_floating_point())
    return [{name: torch.randn(4, 3, 16, 16, generator=generator)} for _ in range(3)]


def rules(**options: object) -> es.Recipe:
    return es.Recipe(
        tuple(es.Rule(kind=kind, **options) for kind in (TensorKind.LINEAR, TensorKind.CONV))  # type: ignore[arg-type]
    )


def run(captured: CapturedModel, calibration: object, **options: object) -> CompressedModel:
    return compress(
        captured, es.plan(captured, rules(**options)), calibration, windows=8, window=16
    )


HALF = es.Pattern(sparsity=0.5)
MODELS: dict[str, tuple[Callable[[], CapturedModel], Callable[[CapturedModel], object]]] = {
    "llama": (language_model, lambda _: TOKENS),
    "bert": (encoder, lambda _: TOKENS),
    "vit": (vision, images),
    "cnn": (cnn, images),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "admm"])
def test_every_architecture_goes_through_every_method(name: str, method: str) -> None:
    build, data = MODELS[name]
    captured = build()
    small = run(captured, data(captured), pattern=HALF, method=method, bits=4, group_size=16)
    planned = [entry.tensor.name for entry in small.plan.tensors if entry.spec is not None]
    assert len(planned) >= 2
    assert list(small.packed) == planned == list(small.errors)
    assert abs(small.sparsity - 0.5) < 0.03
    assert all(0 < error < 1 for error in small.errors.values())
    assert set(small.kept) == {t.name for t in captured.tensors} - set(planned)
    stored = captured.weights()
    folded = fold(captured.loader().float(), captured, small.packed.keys())
    assert all(torch.equal(small.kept[n], {**stored, **folded}[n]) for n in small.kept)


def test_the_better_methods_lose_less_of_the_output() -> None:
    captured = language_model()
    output = {}
    with torch.no_grad():
        tokens = TOKENS[:160].reshape(10, 16)
        wanted = captured.loader()(input_ids=tokens).logits
        for method in ("magnitude", "wanda", "sparsegpt", "admm"):
            plan = es.plan(captured, rules(pattern=HALF, method=method))
            small = compress(captured, plan, TOKENS, windows=125, window=16)
            found = build_decoded(small)(input_ids=tokens).logits
            output[method] = float((found - wanted).square().mean())
    assert output["admm"] < output["wanda"] < output["magnitude"]
    assert output["sparsegpt"] < output["wanda"]


def test_nothing_given_is_changed_and_the_result_repeats() -> None:
    captured = language_model()
    before = {name: value.clone() for name, value in captured.loader().state_dict().items()}
    first = run(captured, TOKENS, bits=4, group_size=16)
    second = run(captured, TOKENS, bits=4, group_size=16)
    after = captured.loader().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name, packed in first.packed.items():
        for part, buffer in packed.buffers.items():
            assert np.array_equal(buffer, second.packed[name].buffers[part])
    assert first.errors == second.errors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_embeddings_and_heads_can_be_packed(tied: bool, quantizer: str) -> None:
    captured = language_model(tied=tied)
    recipe = es.Recipe((es.Rule(bits=4, group_size=16, quantizer=quantizer),))
    small = compress(captured, es.plan(captured, recipe), TOKENS, windows=8, window=16)
    embedding = next(t for t in captured.tensors if t.kind == TensorKind.EMBEDDING)
    assert embedding.name in small.packed
    assert small.errors[embedding.name] < 0.05


def test_data_free_methods_need_no_calibration() -> None:
    captured = language_model()
    plan = es.plan(captured, rules(pattern=HALF, method="magnitude", bits=4, quantizer="rtn"))
    small = compress(captured, plan)
    assert all(0 < error < 1 for error in small.errors.values())


def test_a_method_that_needs_inputs_says_so_without_them() -> None:
    captured = language_model()
    with pytest.raises(CalibrationError, match=r"needs calibration data, and none was given"):
        compress(captured, es.plan(captured, rules(bits=4)))


def test_a_nan_weight_is_named() -> None:
    captured = language_model()
    stored = dict(captured.weights())
    name = "model.layers.1.mlp.up_proj.weight"
    stored[name] = stored[name].clone()
    stored[name][0, 0] = float("nan")
    broken = replace(captured, weights=lambda: stored)
    with pytest.raises(es.errors.EdgesparseError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN"):
        run(broken, TOKENS, bits=4)


def test_an_unknown_device_is_refused() -> None:
    captured = language_model()
    plan = es.plan(captured, rules(bits=4))
    with pytest.raises(UsageError, match="device 'gpu' is not known"):
        compress(captured, plan, TOKENS, device="gpu")


def test_progress_counts_every_tensor() -> None:
    captured, seen = language_model(), list[Progress]()
    plan = es.plan(captured, rules(bits=4, group_size=16))
    small = compress(captured, plan, TOKENS, windows=8, window=16, progress=seen.append)
    assert [step.done for step in seen] == list(range(1, 15))
    assert {step.total for step in seen} == {14}
    assert {step.name: step.error for step in seen} == small.errors


def test_the_dense_alternative_is_the_same_job_on_its_own_plan() -> None:
    captured = language_model()
    plan = es.plan(captured, rules(pattern=HALF, bits=4, group_size=16))
    assert plan.dense_alternative is not None
    other = compress_dense_alternative(captured, plan, TOKENS, windows=8, window=16)
    assert other is not None
    assert other.sparsity == 0
    dense = es.plan(captured, rules(bits=4, group_size=16))
    assert compress_dense_alternative(captured, dense, TOKENS) is None


@pytest.mark.slow
def test_the_bundled_model_keeps_the_order_of_methods() -> None:
    captured = es.load(EXAMPLES / "models" / "classics-4m")
    text = EXAMPLES / "data" / "calibration.txt"
    errors = {}
    for method in ("magnitude", "wanda", "sparsegpt", "admm"):
        plan = es.plan(captured, rules(pattern=HALF, method=method))
        small = compress(captured, plan, text, windows=16, window=256)
        errors[method] = es.evaluate(small, text=EXAMPLES / "data" / "validation.txt").kl
    assert errors["admm"] < errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_an_exported_program_goes_through_without_a_chain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(4, 64),)), tmp_path / "m.pt2")
    captured = es.load(tmp_path / "m.pt2")
    name = next(iter(captured.example_inputs))
    data = {name: torch.randn(66, 64, generator=torch.Generator().manual_seed(0))}
    small = run(captured, data, pattern=HALF, method="admm", bits=4, group_size=16)
    assert len(small.packed) == 2
    assert small.metadata["calibration"]["samples"] == 64  # batches of 4, as it was exported
