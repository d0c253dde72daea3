from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgesparse.capture import load
from edgesparse.model import CapturedModel, TensorKind

Saved = Callable[..., tuple[Any, Path]]
CLASSICS = Path(__file__).parents[2] / "examples" / "models" / "classics-4m"
NAMES = ("llama", "bert", "gpt2", "vit", "resnet", "mobilenet", "mixtral", "t5", "wav2vec2", "clip")


def outputs(model: Any, inputs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        result = model(**inputs)
    return [value for value in result.values() if isinstance(value, torch.Tensor)]


def kinds(captured: CapturedModel) -> dict[str, TensorKind]:
    return {tensor.name: tensor.kind for tensor in captured.tensors}


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_gives_the_model_that_was_saved(name: str, saved: Saved) -> None:
    model, directory = saved(name)
    captured = load(directory)
    for ours, theirs in zip(
        outputs(captured.loader(), captured.example_inputs),
        outputs(model, captured.example_inputs),
        strict=True,
    ):
        # Rounding only: sums go in another order in the linear that replaces a Conv1D, and where a
        # mapped weight lies at another alignment.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_skeleton_has_every_tensor_and_no_weight(name: str, saved: Saved) -> None:
    model, directory = saved(name)
    captured = load(directory)
    skeleton = captured.skeleton()
    state = skeleton.state_dict(keep_vars=True)
    assert set(captured.by_name) == set(state)
    for tensor in captured.tensors:
        for alias in tensor.aliases:
            assert state[alias] is state[tensor.name]
    for parameter in skeleton.parameters():
        assert parameter.is_meta
    real = dict(model.named_buffers())
    for buffer_name, buffer in skeleton.named_buffers():
        if buffer_name not in captured.by_name:
            assert torch.equal(buffer, real[buffer_name])


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_captured_like_its_directory(name: str, saved: Saved) -> None:
    model, directory = saved(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    captured = load(model)
    described = {(t.name, t.kind, t.shape, t.compressible) for t in captured.tensors}
    assert described == {(t.name, t.kind, t.shape, t.compressible) for t in load(directory).tensors}
    captured.loader().apply(lambda module: [p.data.zero_() for p in module.parameters()])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_types_are_kept(dtype: torch.dtype, saved: Saved) -> None:
    captured = load(saved("llama", dtype)[1])
    assert {tensor.dtype for tensor in captured.tensors} == {str(dtype).removeprefix("torch.")}
    assert {p.dtype for p in captured.skeleton().parameters()} == {dtype}
    assert {p.dtype for p in captured.loader().parameters()} == {dtype}


def test_the_bundled_model() -> None:
    captured = load(CLASSICS)
    assert captured.task == "causal-lm"
    assert captured.num_parameters == 4_196_608
    assert captured.nbytes == 8_393_216
    embedding = captured.tensors[0]
    assert (embedding.name, embedding.aliases) == (
        "model.embed_tokens.weight",
        ("lm_head.weight",),
    )
    assert embedding.kind is TensorKind.EMBEDDING
    assert [path.name for path in captured.source.files] == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_conv1d_becomes_a_linear_with_the_weight_transposed(saved: Saved) -> None:
    model, directory = saved("gpt2")
    captured = load(directory)
    tensor = captured.by_name["transformer.h.0.attn.c_attn.weight"]
    assert (tensor.kind, tensor.shape, tensor.compressible) == (TensorKind.LINEAR, (96, 32), True)
    theirs = model.transformer.h[0].attn.c_attn.weight
    assert torch.equal(captured.weights()[tensor.name], theirs.t())
    assert torch.equal(load(model).weights()[tensor.name], theirs.t())


def test_convolutions_that_are_no_matrix_say_why(saved: Saved) -> None:
    captured = load(saved("mobilenet")[1])
    convs = [tensor for tensor in captured.tensors if tensor.kind is TensorKind.CONV]
    depthwise = [tensor for tensor in convs if tensor.shape[1] == 1 and tensor.shape[-1] == 3]
    assert depthwise
    assert all("grouped convolution" in tensor.reason for tensor in depthwise)
    assert all(tensor.compressible for tensor in convs if tensor not in depthwise)


def test_experts_are_layers_of_their_own(saved: Saved) -> None:
    captured = load(saved("mixtral")[1])
    experts = [tensor for tensor in captured.tensors if tensor.kind is TensorKind.EXPERT]
    assert {tensor.shape for tensor in experts} == {(48, 32), (32, 24)}
    assert len(experts) == 2 * 4
    assert all(tensor.compressible for tensor in experts)
    assert not any(len(tensor.shape) == 3 for tensor in captured.tensors)


@pytest.mark.parametrize(
    ("name", "task", "inputs"),
    [
        ("llama", "causal-lm", {"input_ids"}),
        ("bert", "generic", {"input_ids"}),
        ("vit", "generic", {"pixel_values"}),
        ("t5", "generic", {"input_ids", "decoder_input_ids"}),
        ("wav2vec2", "generic", {"input_values"}),
        ("clip", "generic", {"input_ids", "pixel_values"}),
    ],
)
def test_task_and_example_inputs(name: str, task: str, inputs: set[str], saved: Saved) -> None:
    captured = load(saved(name)[1])
    assert captured.task == task
    assert set(captured.example_inputs) == inputs


def test_norms_are_known_by_their_class(saved: Saved) -> None:
    found = kinds(load(saved("llama")[1]))
    assert {n for n, kind in found.items() if kind is TensorKind.NORM} == {
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
    }
    batch_norms = kinds(load(saved("resnet")[1]))
    assert batch_norms["resnet.embedder.embedder.normalization.running_var"] is TensorKind.NORM
