"""Batch norms are folded into the layers before them, and only where nobody else looks."""

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.batchnorm import Pair, absorb, find_pairs, fold
from edgesparse.runtime.modules import build_decoded


class Network(nn.Module):
    """Every kind of layer with a norm behind it, and one whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        self.depthwise, self.second_norm = nn.Conv2d(32, 32, 3, groups=32), nn.BatchNorm2d(32)
        self.up, self.up_norm = nn.ConvTranspose2d(32, 6, 2), nn.BatchNorm2d(6)
        self.twice, self.twice_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.line, self.line_norm = nn.Linear(6, 5), nn.BatchNorm1d(5)
        self.last_norm = nn.BatchNorm1d(5)

    def forward(self, x):
        x = torch.relu_(self.first_norm(self.first(x)))
        x = self.second_norm(self.depthwise(x)).relu()
        x = self.up_norm(self.up(x))
        y = self.twice(x)
        x = self.twice_norm(y) + y
        return self.last_norm(self.line_norm(self.line(x.mean((2, 3)))))


FOUND = (
    Pair("first", "first_norm"), Pair("depthwise", "second_norm"), Pair("up", "up_norm"),
    Pair("line", "line_norm"),
)  # fmt: skip


def network(dtype=torch.float32) -> es.CapturedModel:
    torch.manual_seed(0)
    module = Network().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                tensor.data.uniform_(0.3, 3)
            for tensor in (part.bias, part.running_mean):
                tensor.data.normal_()
    return es.load(module.to(dtype), example_inputs={"x": torch.randn(2, 16, 9, 9, dtype=dtype)})


def outputs(module, captured):
    with torch.no_grad():
        return module.float()(**{k: v.float() for k, v in captured.example_inputs.items()})


def test_pairs_are_layers_whose_output_one_norm_alone_reads():
    assert find_pairs(network()) == FOUND


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_folding_changes_numbers_and_no_function(dtype):
    captured = network(dtype)
    model = captured.loader().float()
    before = outputs(captured.loader(), captured)
    packed = {"first.weight", "depthwise.weight", "up.weight", "line.weight"}
    changed = fold(model, captured, packed)
    found = outputs(model, captured)  # what is added is rounded to float16
    assert torch.linalg.norm(found - before) < 2**-10 * torch.linalg.norm(before)
    assert torch.equal(model.first_norm.weight, torch.ones(32))
    assert torch.equal(model.depthwise.bias, torch.zeros(32))
    assert not torch.equal(model.twice_norm.weight, torch.ones(6))
    assert set(changed) == {
        *(f"{p.norm}.{leaf}" for p in FOUND for leaf in ("weight", "bias", "running_mean",
                                                          "running_var")),
        "depthwise.bias", "up.bias", "line.bias",
    }  # fmt: skip
    assert {value.dtype for value in changed.values()} == {dtype}


def test_one_channel_by_hand():
    """γ = 3, σ² + ε = 4, so g = 1.5; W' = 2 · 1.5, β' = 1 + 1.5 · (5 - 7)."""
    module = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1, eps=1.0)).eval()
    values = (2.0, 5.0, 3.0, 1.0, 7.0, 3.0)  # W, b, γ, β, μ, σ²
    for tensor, value in zip(list(module.state_dict().values())[:6], values, strict=True):
        tensor.fill_(value)
    captured = es.load(module, example_inputs={"input": torch.ones(1, 1, 4)})
    model = captured.loader()
    fold(model, captured, {"0.weight"})
    assert model[0].weight.item() == 3.0
    assert model[0].bias.item() == 0.0
    assert model[1].bias.item() == -2.0
    assert model[1].running_var.item() == 0.0  # 1 - ε


def test_a_compressed_model_holds_the_folded_numbers_and_leaves_the_source_alone():
    captured = network()
    rule = es.Rule(bits=8, group_size=0, quantizer="rtn")
    before = {name: value.clone() for name, value in captured.weights().items()}
    small = es.compress(captured, es.plan(captured, es.Recipe((rule,))))
    assert "first.weight" in small.packed
    assert "depthwise.weight" in small.kept
    kept = small.kept["depthwise.weight"]
    assert torch.equal(kept, kept.half().float())
    assert torch.equal(small.kept["first_norm.weight"], torch.ones(32))
    for name, value in captured.weights().items():
        assert torch.equal(value, before[name]), name
    decoded, dense = build_decoded(small), captured.loader()
    found, expected = outputs(decoded, captured), outputs(dense, captured)
    assert torch.linalg.norm(found - expected) < 0.02 * torch.linalg.norm(expected)
    absorb(decoded, captured)
    assert isinstance(decoded.first_norm, nn.Identity)
    assert isinstance(decoded.twice_norm, nn.BatchNorm2d)
    torch.testing.assert_close(outputs(decoded, captured), found, rtol=1e-5, atol=1e-5)


def test_nothing_to_pack_changes_nothing():
    captured = network()
    small = es.compress(captured, es.plan(captured, es.Recipe(())))
    stored = captured.weights()
    assert all(torch.equal(value, stored[name]) for name, value in small.kept.items())
