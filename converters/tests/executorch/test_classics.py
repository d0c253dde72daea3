"""The bundled model as a program on the stock runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgesparse_converters.executorch import EXPORTER

from edgesparse.errors import UsageError
from edgesparse.exporting import Artifact, validate
from edgesparse.model import CompressedModel


def test_every_weight_is_the_solvers(classics: CompressedModel, classics_xnnpack: Artifact) -> None:
    verdict = validate(classics_xnnpack, classics)
    assert verdict.ok, verdict
    assert len(verdict.layers) == 4 * 7 + 2  # seven linears a layer; the tied weight twice
    assert all(layer.equal for layer in verdict.layers)
    close, everything = verdict.outputs
    assert close.relative_error < 1e-5
    assert everything.relative_error < 0.05


def test_every_linear_runs_in_xnnpack_with_four_bits(classics_xnnpack: Artifact) -> None:
    lowerings = dict(classics_xnnpack.lowering)
    tied = lowerings.pop("model.embed_tokens.weight")
    assert tied == "quantized embedding 4-bit + XNNPACK 4-bit"
    assert set(lowerings.values()) == {"XNNPACK 4-bit"}
    assert classics_xnnpack.nbytes < 3_000_000  # 16.8 MB as float32, 4.5 bits a weight, tied twice


def test_inspect(classics_xnnpack: Artifact) -> None:
    found = EXPORTER.inspect(classics_xnnpack.path)
    forward = found["methods"]["forward"]
    assert forward["inputs"][0]["name"] == "input_ids"
    assert forward["outputs"][0] == {
        "name": "logits",
        "dtype": "float",
        "shape": [*forward["inputs"][0]["shape"], 4096],
    }
    assert sum(found["bytes"].values()) <= found["nbytes"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "expected input_ids"),
        ({"tokens": np.zeros((1, 16), np.int64)}, "expected input_ids"),
        ({"input_ids": np.zeros((1, 16), np.int32)}, "int32"),
        ({"input_ids": np.zeros((1, 17), np.int64)}, "the program takes"),
        ({"input_ids": np.zeros((16,), np.int64)}, "the program takes"),
    ],
)
def test_wrong_inputs_are_told_before_running(
    classics_xnnpack: Artifact, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        EXPORTER.run(classics_xnnpack.path, inputs)


def test_a_flipped_weight_is_found(
    tmp_path: Path, classics: CompressedModel, classics_xnnpack: Artifact
) -> None:
    data = bytearray(classics_xnnpack.path.read_bytes())
    codes = classics.packed["model.layers.2.mlp.up_proj.weight"].codes.values
    nibbles = ((codes[:, 1::2] + 8) << 4 | (codes[:, ::2] + 8)).astype(np.uint8)
    place = bytes(data).find(nibbles.tobytes())
    data[place + 1234] ^= 0x10
    path = tmp_path / "flipped.pte"
    path.write_bytes(data)
    verdict = EXPORTER.validate(path, classics, calls=1)
    wrong = [layer.name for layer in verdict.layers if not layer.ok]
    assert wrong == ["model.layers.2.mlp.up_proj.weight"]
    assert not verdict.ok
