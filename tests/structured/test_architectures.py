"""Parts of library architectures, found without knowing any of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import edgesparse
from edgesparse.runtime.forward import first_tensor
from edgesparse.structured import Cuts, Part, find_groups, prune_structured, write_model
from edgesparse.structured.checked import cut_exactly
from edgesparse.structured.surgery import zero_removed

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGE = {**SMALL, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32}


def llama():
    config = transformers.LlamaConfig(intermediate_size=48, tie_word_embeddings=True, **LANGUAGE)
    return transformers.LlamaForCausalLM(config)


def mixtral():
    config = transformers.MixtralConfig(intermediate_size=24, num_local_experts=4, **LANGUAGE)
    return transformers.MixtralForCausalLM(config)


def bert():
    config = transformers.BertConfig(intermediate_size=48, vocab_size=64, **SMALL)
    return transformers.BertModel(config)


def gpt2():
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def vit():
    config = transformers.ViTConfig(intermediate_size=48, image_size=16, patch_size=8, **SMALL)
    return transformers.ViTModel(config)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def mobilenet():
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.35, image_size=32, num_labels=3, finegrained_output=False
    )
    return transformers.MobileNetV2ForImageClassification(config)


# Groups of each kind: channels, heads, width.
GROUPS = {
    llama: (2, 2, 1), mixtral: (8, 2, 1), bert: (2, 2, 0), gpt2: (2, 2, 1), vit: (2, 2, 0),
    resnet: (4, 0, 0), mobilenet: (25, 0, 0),
}  # fmt: skip
_MADE = {}


def made(build):
    """Return the captured model and its groups, once a session."""
    if build not in _MADE:
        torch.manual_seed(0)
        captured = edgesparse.load(build().eval())
        _MADE[build] = captured, find_groups(captured)
    return _MADE[build]


def output(module, captured):
    with torch.no_grad():
        return first_tensor(module(**captured.example_inputs))


def cut_and_compare(build, part, seed):
    captured, groups = made(build)
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        if group.part is part:
            count = int(torch.randint(1, group.size, (), generator=generator))
            order = torch.randperm(group.size, generator=generator)
            keep[group] = order[:count].sort().values
    small, whole = captured.loader().float(), captured.loader().float()
    zero_removed(whole, keep)
    cut_exactly(small, keep, captured.example_inputs)
    found, expected = output(small, captured), output(whole, captured)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) < captured.num_parameters


@pytest.mark.parametrize("build", GROUPS, ids=lambda build: build.__name__)
def test_every_kind_of_part_is_found(build):
    _, groups = made(build)
    found = tuple(sum(group.part is part for group in groups) for part in Part)
    assert found == GROUPS[build]


@pytest.mark.parametrize("build", GROUPS, ids=lambda build: build.__name__)
def test_cutting_channels_equals_zeroing_them(build):
    cut_and_compare(build, Part.CHANNELS, 0)


@pytest.mark.parametrize("build", [llama, mixtral, bert, gpt2, vit], ids=lambda b: b.__name__)
def test_cutting_heads_equals_zeroing_them(build):
    cut_and_compare(build, Part.HEADS, 0)


@settings(max_examples=12, deadline=None)
@given(
    build=st.sampled_from([llama, mixtral, gpt2, vit, resnet]),
    part=st.sampled_from([Part.CHANNELS, Part.HEADS]),
    seed=st.integers(0, 1000),
)
def test_random_cuts_equal_zeroing(build, part, seed):
    if any(group.part is part for group in made(build)[1]):
        cut_and_compare(build, part, seed)


@pytest.mark.parametrize("build", [llama, mixtral, gpt2], ids=lambda build: build.__name__)
def test_a_narrower_residual_stream_runs(build):
    captured, _ = made(build)
    small = prune_structured(captured, Cuts(width=0.25))
    embedding = next(tensor for tensor in small.tensors if tensor.kind == "embedding")
    assert embedding.shape == (64, 24)
    assert torch.isfinite(output(small.loader(), small)).all()


def test_heads_that_share_keys_go_together():
    captured, _ = made(llama)
    shapes = {t.name.rpartition("self_attn.")[2]: t.shape for t in captured.tensors}
    small = prune_structured(captured, Cuts(heads=0.5))
    cut = {t.name.rpartition("self_attn.")[2]: t.shape for t in small.tensors}
    assert (shapes["q_proj.weight"], cut["q_proj.weight"]) == ((32, 32), (16, 32))
    assert (shapes["k_proj.weight"], cut["k_proj.weight"]) == ((16, 32), (8, 32))
    assert cut["o_proj.weight"] == (32, 16)


@pytest.mark.parametrize("method", ["wanda", "taylor", "magnitude"])
@pytest.mark.parametrize("build", [llama, resnet], ids=lambda build: build.__name__)
def test_every_importance_cuts_what_was_asked(method, build):
    captured, _ = made(build)
    small = prune_structured(captured, Cuts(channels=0.5), importance=method, multiple=8)
    # Some of the narrowest groups have 16 units, so that half is a multiple of 8.
    assert small.num_parameters < 0.8 * captured.num_parameters
    assert output(small.loader(), small).shape == output(captured.loader(), captured).shape


CUTS = {
    "channels": Cuts(channels=0.5), "heads": Cuts(heads=0.5), "width": Cuts(width=0.25),
    "layers": Cuts(layers=1), "all": Cuts(channels=0.25, heads=0.5, layers=1, width=0.5),
}  # fmt: skip


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("build", [llama, mixtral], ids=lambda build: build.__name__)
def test_a_configuration_says_what_is_left(build, cuts, tmp_path):
    captured, _ = made(build)
    small = prune_structured(captured, cuts)
    again = edgesparse.load(write_model(small, tmp_path / "small"))
    assert {t.name: t.shape for t in again.tensors} == {t.name: t.shape for t in small.tensors}
    torch.testing.assert_close(output(again.loader(), small), output(small.loader(), small))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(output(theirs, small), output(small.loader(), small))
