from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgesparse.capture import check_finite, load
from edgesparse.errors import SourceError, UsageError
from edgesparse.model import TensorKind


def test_a_factory_in_the_current_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    captured = load("factories:cnn")
    assert captured.source.kind == "reference"
    assert set(captured.example_inputs) == {"image"}
    described = {t.name: (t.kind.value, t.compressible, t.reason) for t in captured.tensors}
    assert described == {
        "scale": ("other", False, "used by Cnn itself, which is no linear, conv or embedding"),
        "stem.weight": ("conv", True, ""),
        "stem.bias": ("other", False, "a bias"),
        "norm.weight": ("norm", False, "a normalization"),
        "norm.bias": ("norm", False, "a normalization"),
        "norm.running_mean": ("norm", False, "a normalization"),
        "norm.running_var": ("norm", False, "a normalization"),
        "norm.num_batches_tracked": ("norm", False, "a normalization"),
        "depthwise.weight": (
            "conv",
            False,
            "a grouped convolution: its rows see different inputs",
        ),
        "depthwise.bias": ("other", False, "a bias"),
        "up.weight": ("conv", False, "a transposed convolution: its rows are inputs"),
        "up.bias": ("other", False, "a bias"),
        "head.weight": ("linear", True, ""),
        "head.bias": ("other", False, "a bias"),
    }
    assert load("factories:by_name").tensors == captured.tensors


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("factories:not_a_pair", r"returned Cnn; expected a pair"),
        ("factories:fails", r"factories:fails: RuntimeError: no such checkpoint"),
        ("factories:missing", r"has no attribute 'missing'"),
        ("no_such_module_anywhere:f", r"No module named"),
        ("not/a/path", r"no such file or directory"),
    ],
)
def test_references_that_give_no_model(
    reference: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(SourceError, match=message):
        load(reference)


class Shared(nn.Module):
    """Weights tied by attribute and by storage, and a layer that is read but never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight.data = self.one.weight.data
        self.read = nn.Linear(4, 4, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.two(self.one(self.embed(tokens)))
        hidden = nn.functional.linear(hidden, self.read.weight)
        logits: torch.Tensor = self.head(hidden)
        return logits


def test_tied_weights_appear_once_and_stay_tied() -> None:
    captured = load(Shared(), example_inputs=torch.arange(3))
    described = {t.name: (t.aliases, t.kind) for t in captured.tensors if t.compressible}
    assert described == {
        "embed.weight": (("head.weight",), TensorKind.EMBEDDING),
        "one.weight": (("two.weight",), TensorKind.LINEAR),
    }
    module = captured.loader()
    assert module.get_parameter("one.weight") is module.get_parameter("two.weight")
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")


def test_a_layer_that_is_read_but_never_called_is_left_alone() -> None:
    captured = load(Shared(), example_inputs=torch.arange(3))
    read = captured.by_name["read.weight"]
    assert (read.compressible, read.reason) == (False, "read by another module than its own")


def test_attention_of_torch_reads_its_projection_directly() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.attention(x, x, x)[0]
            return mixed

    captured = load(Attention(), example_inputs=torch.zeros(1, 3, 8))
    assert not any(tensor.compressible for tensor in captured.tensors)


def test_each_loader_call_gives_a_model_of_its_own() -> None:
    module = Shared()
    captured = load(module, example_inputs=torch.arange(3))
    first = captured.loader()
    for parameter in first.parameters():
        parameter.data.zero_()
    tokens = torch.arange(3)
    assert torch.equal(captured.loader()(tokens), module(tokens))
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_recurrent_layers_keep_their_weights() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(3, 4).eval()
    captured = load(module, example_inputs={"input": torch.zeros(2, 1, 3)})
    assert all(tensor.kind is TensorKind.OTHER for tensor in captured.tensors)
    x = torch.randn(5, 1, 3)
    assert torch.equal(captured.loader()(x)[0], module(x)[0])


def test_example_inputs_are_asked_for_and_checked() -> None:
    with pytest.raises(UsageError, match="needs example inputs"):
        load(nn.Linear(3, 2))
    with pytest.raises(SourceError, match=r"do not fit Linear.forward"):
        load(nn.Linear(3, 2), example_inputs={"x": torch.zeros(1, 3)})
    with pytest.raises(UsageError, match="belong to an"):
        load("factories:cnn", example_inputs=torch.zeros(1))


def test_unknown_types_are_named() -> None:
    module = nn.Linear(4, 4, bias=False)
    module.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(SourceError, match=r"phase: dtype complex64 is not known"):
        load(module, example_inputs=torch.zeros(1, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_that_are_not_finite_are_found_and_named(bad: float, dtype: torch.dtype) -> None:
    weight = torch.zeros(5, 7, dtype=dtype)
    check_finite("layers.3.up.weight", weight)
    weight[2, 3] = bad
    with pytest.raises(SourceError, match=r"layers\.3\.up\.weight: element 17 of 35 is"):
        check_finite("layers.3.up.weight", weight)
