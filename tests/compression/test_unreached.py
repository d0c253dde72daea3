"""A layer that no calibration sample reaches: solved as without inputs, and said so."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgesparse as es
from edgesparse.model import CapturedModel


class Routed(nn.Module):
    """Examples with a positive first value go through one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.common, self.rare = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.common(x)
        chosen = x[:, 0] > 0
        if bool(chosen.any()):
            hidden = hidden.index_put((chosen,), self.rare(hidden[chosen]))
        return hidden


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    return es.load(Routed().eval(), example_inputs=torch.ones(2, 64))


def inputs(first: float) -> list[Tensor]:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    x[:, 0] = first
    return [x]


def plan_of(captured: CapturedModel, method: str, quantizer: str) -> es.Plan:
    rule = es.Rule(
        pattern=es.Pattern(keep=2, of=4), method=method, quantizer=quantizer, bits=8, group_size=16
    )
    return es.plan(captured, es.Recipe((rule,)))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
def test_it_goes_by_magnitude_and_the_record_says_so(
    captured: CapturedModel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="edgesparse"):
        small = es.compress(captured, plan_of(captured, method, "gptq"), inputs(-1.0))
    assert "rare: no calibration sample reaches it" in caplog.text
    assert small.metadata["unreached"] == ["rare.weight"]
    plain = es.compress(captured, plan_of(captured, "magnitude", "rtn"))
    own, wanted = small.packed["rare.weight"], plain.packed["rare.weight"]
    assert np.array_equal(own.codes.keep_mask, wanted.codes.keep_mask)
    np.testing.assert_allclose(own.decode(), wanted.decode(), atol=2e-3)


def test_reached_layers_and_missing_calibration_are_no_news(captured: CapturedModel) -> None:
    plan = plan_of(captured, "magnitude", "rtn")
    assert "unreached" not in es.compress(captured, plan, inputs(1.0)).metadata
    assert "unreached" not in es.compress(captured, plan).metadata
