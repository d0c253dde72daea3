"""Activations that are not finite: an error that names the layer, whatever the method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.errors import CalibrationError
from edgesparse.model import CapturedModel


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    with torch.no_grad():
        model[0].bias[7] = float("nan")  # the first layer's own inputs are fine
    return es.load(model, example_inputs=torch.zeros(1, 64))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "16x1"])
@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "admm"])
def test_the_layer_is_named(
    captured: CapturedModel, method: str, quantizer: str, pattern: str
) -> None:
    rule = es.Rule(
        pattern=es.Pattern.parse(pattern, sparsity=0.5), method=method, quantizer=quantizer,
        bits=4, group_size=16,
    )  # fmt: skip
    plan = es.plan(captured, es.Recipe((rule,)))
    with pytest.raises(CalibrationError, match=r"2: the inputs are NaN or infinite"):
        es.compress(captured, plan, [torch.randn(8, 64)])
