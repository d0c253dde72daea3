"""Small layers in every form: the file holds exactly the codes and computes what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch.assemble import xnnpack_weight
from edgesparse_converters.executorch.embedding import pack_nibbles
from edgesparse_converters.executorch.lowering import Form, plan_uses
from edgesparse_converters.executorch.program import read_program
from torch import Tensor, nn

import edgesparse as es
from edgesparse.errors import Unsupported, UsageError
from edgesparse.exporting import export, validate
from edgesparse.model import CompressedModel
from edgesparse.packed import Codes
from edgesparse.pattern import Pattern
from edgesparse.recipe import Rule

Compress = Callable[..., CompressedModel]


class Zoo(nn.Module):
    """One layer of each form, side by side; one lowering tests them all."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Linear(64, 48)
        self.three = nn.Linear(64, 48, bias=False)
        self.four = nn.Linear(64, 48)
        self.row = nn.Linear(64, 7)
        self.eight = nn.Linear(64, 48)
        self.eight_groups = nn.Linear(64, 48)
        self.sixteen = nn.Linear(64, 48)
        self.odd = nn.Linear(50, 48)
        self.table4 = nn.Embedding(40, 64)
        self.table8 = nn.Embedding(40, 64)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor, tokens: Tensor, image: Tensor) -> dict[str, Tensor]:
        linears = ("two", "three", "four", "row", "eight", "eight_groups", "sixteen")
        results = {name: getattr(self, name)(x) for name in linears}
        results |= {name: getattr(self, name)(tokens) for name in ("table4", "table8")}
        return {**results, "odd": self.odd(x[..., :50]), "conv": self.conv(image)}


@pytest.fixture(scope="module")
def zoo(compress: Compress) -> CompressedModel:
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(5, 64),
        "tokens": torch.arange(40)[None],
        "image": torch.randn(1, 3, 8, 8),
    }
    return compress(
        Zoo(),
        inputs,
        two__weight={"bits": 2, "group_size": 32},
        three__weight={"bits": 3, "group_size": 64},
        four__weight={"bits": 4, "group_size": 32, "sparsity": 0.5},
        row__weight={"bits": 4, "group_size": 0},
        eight__weight={"bits": 8, "group_size": 0},
        eight_groups__weight={"bits": 8, "group_size": 32},
        sixteen__weight={"bits": 16, "sparsity": 0.5},
        odd__weight={"bits": 4, "group_size": 32},
        table4__weight={"bits": 4, "group_size": 32},
        table8__weight={"bits": 8, "group_size": 64},
        conv__weight={"bits": 4, "group_size": 32},
    )


def test_the_stock_forms(zoo: CompressedModel, tmp_path: Path) -> None:
    artifact = export(zoo, "executorch", tmp_path / "zoo.pte", lowering="xnnpack")
    assert artifact.lowering == {
        "two.weight": "XNNPACK 4-bit",
        "three.weight": "XNNPACK 4-bit",
        "four.weight": "XNNPACK 4-bit",
        "row.weight": "XNNPACK 4-bit",
        "eight.weight": "XNNPACK 8-bit per row",
        "eight_groups.weight": "float32",
        "sixteen.weight": "float32",
        "odd.weight": "float32",
        "table4.weight": "quantized embedding 4-bit",
        "table8.weight": "quantized embedding 8-bit",
        "conv.weight": "float32",
    }
    notes = "\n".join(artifact.notes)
    assert "2-bit codes stored in 4 bits, the same numbers" in notes
    assert "no 8-bit weights in groups" in notes
    assert "50 columns do not divide" in notes
    assert "neither a plain linear, an embedding, nor a convolution without overlap" in notes

    verdict = validate(artifact, zoo)
    assert verdict.ok, verdict
    assert {layer.name for layer in verdict.layers} == set(artifact.lowering)
    assert all(layer.equal for layer in verdict.layers)
    for check in verdict.outputs:
        assert check.relative_error < 1e-5, check


def test_auto_takes_for_each_layer_what_keeps_its_bytes(zoo: CompressedModel) -> None:
    """Dense 4 and 8 bits to XNNPACK; masks, fewer bits and odd groups to our operators."""
    forms = {use.name: use.form for use in plan_uses(zoo, zoo.captured.skeleton())}
    stock = {
        "row.weight": Form.XNNPACK4,
        "eight.weight": Form.XNNPACK8,
        "table4.weight": Form.EMBEDDING4,
        "table8.weight": Form.EMBEDDING8,
        "conv.weight": Form.FLOAT32,
    }
    assert {name: form for name, form in forms.items() if form is not Form.PACKED} == stock
    chosen = {
        use.name: use.form
        for use in plan_uses(
            zoo, zoo.captured.skeleton(), {"four.*": "xnnpack", "eight.*": "packed"}
        )
    }
    assert chosen == {**forms, "four.weight": Form.XNNPACK4, "eight.weight": Form.PACKED}


def test_an_unknown_lowering_or_layer_is_refused(zoo: CompressedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of auto, packed, xnnpack, float32"):
        export(zoo, "executorch", tmp_path / "a.pte", lowering="int4")
    with pytest.raises(UsageError, match="no packed tensor has such a name"):
        export(zoo, "executorch", tmp_path / "a.pte", lowering={"seven.*": "xnnpack"})
    assert not list(tmp_path.iterdir())


def test_a_scale_that_xnnpack_would_round_is_refused() -> None:
    codes = Codes(
        values=np.ones((4, 32), np.int8),
        scales=np.full((4, 1), 1 + 2**-9, np.float16),
        keep_mask=np.ones((4, 32), bool),
        bits=4,
        group_size=32,
    )
    with pytest.raises(Unsupported, match="fc1: a scale has more digits than bfloat16"):
        xnnpack_weight(codes, "fc1")


def test_nibbles_by_hand() -> None:
    """Even column high: -8 is 0, 7 is 15, 0 is 8, 1 is 9."""
    assert pack_nibbles(torch.tensor([[-8, 7, 0, 1]], dtype=torch.int8)).tolist() == [[15, 137]]


class Normed(nn.Module):
    """A convolution that XNNPACK runs in float32 and one of ours, each before a batch norm.

    It pads by the sizes it finds at its layers and casts to their type, as models of libraries do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.narrow, self.narrow_norm = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        for norm in (self.wide_norm, self.narrow_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, image: Tensor) -> Tensor:
        seen = self.wide_norm(self.wide(image)).relu()
        around = (self.narrow.kernel_size[0] - self.narrow.stride[0]) // 2
        padded = nn.functional.pad(seen, [around] * 4).to(self.narrow.weight.dtype)
        return self.narrow_norm(self.narrow(padded))


def test_a_folded_norm_is_no_operator_and_changes_no_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    captured = es.load(Normed().eval(), example_inputs={"image": torch.randn(1, 3, 8, 8)})
    half = Pattern(sparsity=0.5)
    rule = Rule(pattern=half, method="magnitude", bits=4, group_size=32, quantizer="rtn")
    small = es.compress(captured, es.plan(captured, es.Recipe((rule,))))
    artifact = export(small, "executorch", tmp_path / "normed.pte")
    assert not [name for name in read_program(artifact.path).operators if "norm" in name]
    verdict = validate(artifact, small, calls=2)
    assert {layer.name: layer.lowering for layer in verdict.layers} == {
        "wide.weight": "float32",
        "narrow.weight": "edgesparse packed",
    }
    assert verdict.ok, verdict
