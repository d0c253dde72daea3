"""A packed 1x1 convolution is a linear layer at every place; others read their weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgesparse
from edgesparse.pattern import Pattern
from edgesparse.pointwise import is_pointwise
from edgesparse.recipe import Recipe, Rule
from edgesparse.runtime.modules import build_decoded, build_exportable, build_packed

RECIPE = Recipe((Rule(bits=4, group_size=32, pattern=Pattern(sparsity=0.6)),))
POINTWISE = [
    (nn.Conv1d(48, 40, 1), (2, 48, 7)),
    (nn.Conv1d(48, 40, 1, stride=3, bias=False), (48, 7)),
    (nn.Conv2d(48, 40, 1), (1, 48, 3, 5)),
    (nn.Conv2d(48, 40, (1, 1), stride=(2, 3)), (2, 48, 5, 7)),
    (nn.Conv2d(48, 40, 1, padding="valid"), (2, 48, 2, 2)),
]
OTHERS = [
    (nn.Conv2d(48, 40, (1, 3)), (1, 48, 5, 5)),
    (nn.Conv2d(48, 40, 1, padding=1), (1, 48, 5, 5)),
]
GROUPED = [
    (nn.Conv2d(48, 48, 3, groups=48), (1, 48, 5, 5)),
    (nn.Conv1d(48, 48, 1, groups=2), (1, 48, 5)),
]


def compress(convolution, shape, compress_random):
    torch.manual_seed(0)
    x = torch.randn(shape)
    model = edgesparse.load(nn.Sequential(convolution).eval(), example_inputs=(x,))
    return compress_random(model, RECIPE), x


def read_weights(module, x, monkeypatch) -> int:
    """Run ``module``; return how often it made a dense weight."""
    read = []
    payload = module.get_submodule("0.weight_payload")
    own = payload.weight
    monkeypatch.setattr(payload, "weight", lambda: read.append(1) or own())
    module(x)
    return len(read)


@pytest.mark.parametrize(("convolution", "shape"), [*POINTWISE, *OTHERS], ids=str)
def test_packed_computes_what_decoded_computes(convolution, shape, compress_random):
    compressed, x = compress(convolution, shape, compress_random)
    found, expected = build_packed(compressed)(x), build_decoded(compressed)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("convolution", "shape"), POINTWISE, ids=str)
def test_a_pointwise_convolution_does_not_read_its_weight(
    convolution, shape, compress_random, monkeypatch
):
    compressed, x = compress(convolution, shape, compress_random)
    assert is_pointwise(convolution)
    assert read_weights(build_packed(compressed), x, monkeypatch) == 0
    assert read_weights(build_exportable(compressed), x, monkeypatch) == 1


@pytest.mark.parametrize(("convolution", "shape"), OTHERS, ids=str)
def test_other_convolutions_do(convolution, shape, compress_random, monkeypatch):
    compressed, x = compress(convolution, shape, compress_random)
    assert not is_pointwise(convolution)
    assert read_weights(build_packed(compressed), x, monkeypatch) == 1


@pytest.mark.parametrize(("convolution", "shape"), GROUPED, ids=str)
def test_grouped_ones_are_not_packed(convolution, shape, compress_random):
    compressed, x = compress(convolution, shape, compress_random)
    assert not is_pointwise(convolution)
    assert not compressed.packed
    assert torch.equal(build_packed(compressed)(x), build_decoded(compressed)(x))
