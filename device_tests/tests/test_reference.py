"""Inputs for a bundle: cut from text, drawn at random, and what the packed model makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_device.reference import draw_inputs, input_shapes, references, text_inputs
from torch import nn

import edgesparse as es
from edgesparse.errors import SourceError, UsageError

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = (EXAMPLES / "data/validation.txt").read_text(encoding="utf-8")[:2000]
TENSOR = {"name": "ids", "dtype": "int64", "shape": [1, 16]}


@pytest.fixture(scope="module")
def words() -> es.CapturedModel:
    pytest.importorskip("transformers")
    return es.load(EXAMPLES / "models/classics-4m")


def test_text_becomes_windows_one_after_the_other(words: es.CapturedModel):
    inputs = text_inputs(words, {"input_ids": (2, 8)}, TEXT, count=3)
    longer = text_inputs(words, {"input_ids": (1, 48)}, TEXT, count=1)
    assert list(inputs) == ["text-0", "text-1", "text-2"]
    joined = np.concatenate([arrays["input_ids"].reshape(-1) for arrays in inputs.values()])
    np.testing.assert_array_equal(joined, longer["text-0"]["input_ids"].reshape(-1))


def test_text_that_cannot_be_cut(words: es.CapturedModel):
    with pytest.raises(SourceError, match="longer text or fewer cases"):
        text_inputs(words, {"input_ids": (1, 100)}, TEXT, count=1000)
    with pytest.raises(UsageError, match="for language models"):
        text_inputs(words, {"a": (1, 4), "b": (1, 4)}, TEXT, count=1)


def test_random_inputs_have_a_seed_and_a_range(words: es.CapturedModel):
    shapes = {"input_ids": (1, 500)}
    first, again, other = (draw_inputs(words, shapes, count=2, seed=s) for s in (0, 0, 1))
    tokens = first["random-0"]["input_ids"]
    np.testing.assert_array_equal(tokens, again["random-0"]["input_ids"])
    assert (tokens != other["random-0"]["input_ids"]).any()
    assert (tokens != first["random-1"]["input_ids"]).any()
    assert tokens.min() >= 0
    assert 255 < tokens.max() < words.config["vocab_size"]
    with pytest.raises(SourceError, match="no example of the inputs pixels"):
        draw_inputs(words, {"pixels": (1,)}, count=1, seed=0)


def test_an_artifact_says_what_it_takes():
    executorch = {"methods": {"forward": {"inputs": [TENSOR]}}}
    coreml = {
        "default_function": "main",
        "functions": {"other": {"inputs": []}, "main": {"inputs": [TENSOR]}},
    }
    assert input_shapes(executorch) == input_shapes(coreml) == {"ids": (1, 16)}
    with pytest.raises(SourceError, match="does not say"):
        input_shapes({})


def test_references_are_what_the_decoded_weights_compute():
    torch.manual_seed(0)
    layer = nn.Linear(96, 32)
    model = es.load(layer, example_inputs={"input": torch.zeros(1, 96)})
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), method="magnitude", bits=4, quantizer="rtn")
    small = es.compress(model, es.plan(model, es.Recipe((rule,))))
    x = np.random.default_rng(0).standard_normal((1, 96)).astype(np.float32)

    ((name, found),) = references(small, [{"input": x}])[0].items()
    (weight,) = (packed.decode() for packed in small.packed.values())
    assert name == "output"
    np.testing.assert_allclose(found, x @ weight.T + layer.bias.detach().numpy(), atol=1e-5)
