"""Our operators in the runtime: every layout and kind of activation, the same bits as in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch.arithmetic import PackedReference, packed_linear
from edgesparse_converters.executorch.assemble import build_module
from edgesparse_converters.executorch.lowering import Form, plan_uses
from torch import Tensor, nn

from edgesparse.errors import UsageError
from edgesparse.exporting import export, validate
from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS, Codes
from edgesparse.pattern import DENSE

Compress = Callable[..., CompressedModel]

LAYERS = {
    "dense2": {"bits": 2, "group_size": 32},
    "dense3": {"bits": 3, "group_size": 64},
    "dense4": {"bits": 4, "group_size": 128},
    "dense8": {"bits": 8, "group_size": 0},
    "bitmask2": {"bits": 2, "group_size": 32, "sparsity": 0.5},
    "bitmask3": {"bits": 3, "group_size": 32, "sparsity": 0.5},
    "bitmask4": {"bits": 4, "group_size": 32, "sparsity": 0.7},
    "bitmask8": {"bits": 8, "group_size": 32, "sparsity": 0.9},
    "bitmask16": {"bits": 16, "sparsity": 0.5},
    "nm4": {"group_size": 32, "sparsity": 0.5, "pattern": "2:4"},
    "n64": {"group_size": 128, "sparsity": 0.75, "pattern": "16:64"},
    "column16": {"group_size": 64, "sparsity": 0.5, "pattern": "16x1"},
    "block16x8": {"group_size": 128, "sparsity": 0.5, "pattern": "16x8"},
}
ROWS, COLUMNS = 37, 200


class Layers(nn.Module):
    """The same input through a layer of every layout, and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {name: nn.Linear(COLUMNS, ROWS, bias="4" in name) for name in LAYERS}
        )
        self.table = nn.Embedding(50, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.table.weight
        self.point = nn.Conv2d(24, 40, 1, stride=(1, 2))

    def forward(self, x: Tensor, tokens: Tensor, image: Tensor) -> dict[str, Tensor]:
        results = {name: layer(x) for name, layer in self.layers.items()}
        rows = self.table(tokens)
        return {**results, "rows": rows, "scores": self.head(rows), "point": self.point(image)}


@pytest.fixture(scope="module")
def layers(compress: Compress) -> CompressedModel:
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(2, 5, COLUMNS),
        "tokens": torch.arange(50)[None],
        "image": torch.randn(2, 24, 3, 5),
    }
    options = {f"layers__{name}__weight": keywords for name, keywords in LAYERS.items()}
    options["table__weight"] = {"bits": 4, "group_size": 32}
    options["point__weight"] = {"bits": 4, "group_size": 8, "sparsity": 0.5}
    return compress(Layers(), inputs, **options)


@pytest.mark.parametrize("activations", ["int8", "int16", "float32"])
def test_every_layout(layers: CompressedModel, tmp_path: Path, activations: str) -> None:
    path = tmp_path / "layers.pte"
    artifact = export(layers, "executorch", path, lowering="packed", activations=activations)
    assert set(artifact.lowering.values()) == {"edgesparse packed"}
    verdict = validate(artifact, layers, calls=3)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    assert len(verdict.layers) == len(LAYERS) + 3
    for check in verdict.outputs:
        integers = activations != "float32" and "bitmask16" not in check.name
        assert check.relative_error <= (0 if integers else 1e-6), check


def test_unknown_activations_are_refused(layers: CompressedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="activations 'int4': one of int8, int16, float32"):
        export(layers, "executorch", tmp_path / "a.pte", activations="int4")


def test_activations_come_closer_with_more_bits(layers: CompressedModel) -> None:
    codes = layers.packed["layers.bitmask4.weight"].codes
    x = torch.randn(16, COLUMNS)
    exact = packed_linear(x, codes, None, "float32")
    errors = {
        kind: float((packed_linear(x, codes, None, kind) - exact).norm() / exact.norm())
        for kind in ("int8", "int16")
    }
    assert 1e-3 < errors["int8"] < 1e-2
    assert errors["int16"] < 5e-5


def test_digits_by_hand(layers: CompressedModel) -> None:
    """One group of four: x = [127, -1, 0.4, 0.6], int8: t = 1, digits 127, -1, 0, 1."""
    codes = Codes(
        values=np.array([[1, 2, 3, -4]], np.int8), scales=np.array([[0.5]], np.float16),
        keep_mask=np.ones((1, 4), bool), bits=4, group_size=4,
    )  # fmt: skip
    y = PackedReference(codes, torch.tensor([10.0]), "int8")(torch.tensor([[127.0, -1, 0.4, 0.6]]))
    assert y.tolist() == [[(127 - 2 - 4) * 0.5 + 10]]


def test_codes_of_another_scheme_are_decoded_and_it_is_said(compress: Compress) -> None:
    """Our operators would read asymmetric codes without their zero points."""
    linear = nn.Sequential(nn.Linear(64, 32, bias=False))
    model = compress(linear, {"input": torch.randn(1, 64)})
    weight = model.captured.weights()["0.weight"].numpy()
    codes = Codes(
        values=np.zeros(weight.shape, np.int8), scales=np.ones((32, 2), np.float16),
        keep_mask=np.ones(weight.shape, bool), bits=4, group_size=32,
        zeros=np.full((32, 2), 3, np.int8),
    )  # fmt: skip
    packed = FORMATS.get("dense4").pack(codes, pattern=DENSE)
    model = replace(model, packed={"0.weight": packed}, kept={})
    for choice in ("auto", "packed", "xnnpack"):
        uses = plan_uses(model, model.captured.skeleton(), choice)
        assert [use.form for use in uses] == [Form.FLOAT32]
        assert "asymmetric codes" in uses[0].reason


def test_a_replaced_layer_keeps_its_sizes(layers: CompressedModel) -> None:
    """Models read them: a position table asked for its length, a head for its outputs."""
    uses = plan_uses(layers, layers.captured.skeleton(), "packed")
    module = build_module(layers, uses, activations="int16")
    table, head = module.get_submodule("table"), module.get_submodule("head")
    assert (table.num_embeddings, table.embedding_dim) == (50, 64)
    assert (head.in_features, head.out_features) == (64, 50)
