"""Convolutions whose windows do not overlap compute from packed bytes; others are float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from edgesparse_converters.executorch import EXPORTER
from torch import Tensor, nn

import edgesparse as es
from edgesparse.exporting import export, validate
from edgesparse.model import CompressedModel
from edgesparse.pattern import Pattern
from edgesparse.planner.peak import held_nbytes

Compress = Callable[..., CompressedModel]

PATCHES = {
    "square": nn.Conv2d(3, 40, 8, stride=8),
    "left_over": nn.Conv2d(3, 40, 5, stride=5, bias=False),
    "oblong": nn.Conv2d(3, 24, (2, 4), stride=(2, 4)),
    "flat": nn.Conv2d(3, 24, (1, 3), stride=(1, 3)),
}
OTHERS = {
    "padded": nn.Conv2d(3, 8, 4, stride=4, padding=2),
    "overlapping": nn.Conv2d(3, 8, 4, stride=3),
}


class Eyes(nn.Module):
    """Every kind of convolution over the same picture, and one over its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(PATCHES | OTHERS)
        self.line = nn.Conv1d(16, 24, 3, stride=3)

    def forward(self, picture: Tensor, sound: Tensor) -> dict[str, Tensor]:
        seen = {name: layer(picture) for name, layer in self.layers.items()}
        return {**seen, "line": self.line(sound)}


@pytest.fixture(scope="module")
def eyes(compress: Compress) -> CompressedModel:
    torch.manual_seed(0)
    inputs = {"picture": torch.randn(2, 3, 27, 17), "sound": torch.randn(2, 16, 13)}
    options = {
        f"layers__{name}__weight": {"bits": 4, "group_size": 32, "sparsity": 0.5}
        for name in [*PATCHES, *OTHERS]
    }
    options["layers__left_over__weight"] = {"bits": 4, "group_size": 128}
    options["line__weight"] = {"bits": 4, "group_size": 16, "sparsity": 0.5, "pattern": "2:4"}
    return compress(Eyes(), inputs, **options)


@pytest.mark.parametrize("activations", ["int8", "int16", "float32"])
def test_patches_are_packed_and_equal(
    eyes: CompressedModel, tmp_path: Path, activations: str
) -> None:
    """With integer activations the same bits as in torch, whatever is left over at the edges."""
    artifact = export(eyes, "executorch", tmp_path / "eyes.pte", activations=activations)
    packed = {name for name, form in artifact.lowering.items() if form == "edgesparse packed"}
    assert packed == {*(f"layers.{name}.weight" for name in PATCHES), "line.weight"}
    notes = "\n".join(artifact.notes)
    for name in OTHERS:
        assert artifact.lowering[f"layers.{name}.weight"] == "float32"
        assert f"layers.{name}.weight: float32: neither a plain linear" in notes
    verdict = validate(artifact, eyes, calls=3)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    for check in verdict.outputs:
        is_patch = check.name.split(",")[0] in {*PATCHES, "line"}
        exact = is_patch and activations != "float32"
        assert check.relative_error <= (0 if exact else 1e-6), check


def test_the_stock_runtime_has_no_form_for_them(eyes: CompressedModel, tmp_path: Path) -> None:
    artifact = export(eyes, "executorch", tmp_path / "stock.pte", lowering="xnnpack")
    assert set(artifact.lowering.values()) == {"float32"}
    assert "XNNPACK has no 4-bit convolutions" in "\n".join(artifact.notes)


@pytest.mark.parametrize(("stride", "is_packed"), [(16, True), (15, False)])
def test_a_plan_counts_them_as_they_are_written(
    stride: int, is_packed: bool, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 256, 16, stride=stride)).eval()
    captured = es.load(module, example_inputs=torch.zeros(1, 3, 32, 32))
    rule = es.Rule(
        bits=4, group_size=128, pattern=Pattern(sparsity=0.5), method="magnitude", quantizer="rtn"
    )
    made = es.plan(captured, es.Recipe((rule,)), target="executorch")
    written = export(es.compress(captured, made), "executorch", tmp_path / "eye.pte")
    assert EXPORTER.predict_nbytes(made) == pytest.approx(written.nbytes, rel=0.03, abs=10_000)
    held = held_nbytes(made.tensors[0], "executorch")
    assert held == (made.tensors[0].nbytes if is_packed else 4 * 256 * 3 * 16 * 16)
