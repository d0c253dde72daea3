"""Groups of library architectures, found without knowing any of them."""

from __future__ import annotations

import pytest
import torch

import edgesparse
from edgesparse.runtime.forward import floating_tensors
from edgesparse.structured import cut, find_groups

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert():
    config = transformers.BertConfig(intermediate_size=48, vocab_size=64, **SMALL)
    return transformers.BertModel(config)


def gpt2():
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
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


LEAST_GROUPS = {bert: 2, gpt2: 2, vit: 2, resnet: 2, mobilenet: 16}


@pytest.mark.parametrize("build", LEAST_GROUPS, ids=lambda build: build.__name__)
def test_cutting_equals_zeroing(build):
    torch.manual_seed(0)
    captured = edgesparse.load(build().eval())
    groups = find_groups(captured)
    assert len(groups) >= LEAST_GROUPS[build]
    small, whole = captured.loader().float(), captured.loader().float()
    keep = {}
    for group in groups:
        keep[group] = torch.randperm(group.size)[: group.size // 2 + 1].sort().values
        gone = torch.ones(group.size, dtype=torch.bool)
        gone[keep[group]] = False
        for reader in group.readers:
            whole.get_parameter(reader.name).data.movedim(reader.dim, 0)[gone] = 0
    cut(small, keep)
    inputs = captured.example_inputs
    with torch.no_grad():
        expected = next(floating_tensors(whole(**inputs)))
        found = next(floating_tensors(small(**inputs)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    count = [sum(p.numel() for p in module.parameters()) for module in (small, whole)]
    assert count[0] < count[1]
