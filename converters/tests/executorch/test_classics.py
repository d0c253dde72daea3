"""The bundled model as a program: within the demo's budget with our operators, and stock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edgesparse_converters.executorch import EXPORTER
from edgesparse_converters.executorch.profiling import profile
from edgesparse_converters.executorch.program import read_program

import edgesparse as es
from edgesparse.cli import main
from edgesparse.errors import SourceError, UsageError
from edgesparse.exporting import Artifact, validate
from edgesparse.model import CompressedModel

CLASSICS = Path(__file__).parents[3] / "examples" / "models" / "classics-4m"


def test_the_packed_program_meets_the_budget_and_computes_the_model(
    classics: CompressedModel, classics_packed: Artifact
) -> None:
    assert classics_packed.nbytes < 2_000_000
    verdict = validate(classics_packed, classics, calls=2)
    assert verdict.ok, verdict
    assert len(verdict.layers) == 4 * 7 + 2  # seven linears a layer; the tied weight twice
    assert all(layer.equal for layer in verdict.layers)
    assert all(check.relative_error < 2e-4 for check in verdict.outputs)
    assert set(classics_packed.lowering.values()) == {"edgesparse packed"}


def test_the_tied_weight_is_stored_once(
    classics: CompressedModel, classics_packed: Artifact
) -> None:
    program = read_program(classics_packed.path)
    packed = sum(tensor.nbytes for tensor in classics.packed.values())
    norms = sum(4 * tensor.numel() for tensor in classics.kept.values())
    assert packed <= program.constants_nbytes < packed + norms + 20_000


def test_inspect(classics_packed: Artifact) -> None:
    found = EXPORTER.inspect(classics_packed.path)
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
    classics_packed: Artifact, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        EXPORTER.run(classics_packed.path, inputs)


def test_a_token_outside_of_the_vocabulary_is_told(classics_packed: Artifact) -> None:
    with pytest.raises(SourceError, match="index 5000 is outside of 4096 rows"):
        EXPORTER.run(classics_packed.path, {"input_ids": np.full((1, 16), 5000)})


def test_a_flipped_weight_is_found(
    tmp_path: Path, classics: CompressedModel, classics_packed: Artifact
) -> None:
    data = bytearray(classics_packed.path.read_bytes())
    codes = classics.packed["model.layers.2.mlp.up_proj.weight"].buffers["codes"]
    data[bytes(data).find(codes.tobytes()) + 1234] ^= 0x10
    path = tmp_path / "flipped.pte"
    path.write_bytes(data)
    verdict = EXPORTER.validate(path, classics, calls=1)
    wrong = [layer.name for layer in verdict.layers if not layer.ok]
    assert wrong == ["model.layers.2.mlp.up_proj.weight"]
    assert not verdict.ok


@pytest.mark.slow
def test_the_stock_program(classics: CompressedModel, classics_xnnpack: Artifact) -> None:
    lowerings = dict(classics_xnnpack.lowering)
    tied = lowerings.pop("model.embed_tokens.weight")
    assert tied == "quantized embedding 4-bit + XNNPACK 4-bit"
    assert set(lowerings.values()) == {"XNNPACK 4-bit"}
    assert classics_xnnpack.nbytes < 3_000_000  # 4.5 bits a weight, the tied one twice
    verdict = validate(classics_xnnpack, classics)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    close, everything = verdict.outputs
    assert close.relative_error < 1e-5
    assert everything.relative_error < 0.05


def test_an_operator_without_a_kernel_is_told(tmp_path: Path, classics_packed: Artifact) -> None:
    data = classics_packed.path.read_bytes()
    path = tmp_path / "unknown.pte"
    path.write_bytes(data.replace(b"edgesparse::linear", b"edgesparse::linexr"))
    with pytest.raises(SourceError, match=r"no kernel for edgesparse::linexr\.activations_out"):
        EXPORTER.run(path, {"input_ids": np.zeros((1, 16), np.int64)})


def test_where_the_time_goes(classics_packed: Artifact) -> None:
    times = profile(classics_packed.path, {"input_ids": np.zeros((1, 16), np.int64)}, runs=2)
    calls = {time.name: time.calls for time in times}
    assert calls["edgesparse::linear.activations_out"] == 4 * 7 + 1
    assert calls["edgesparse::embedding.out"] == 1
    assert [time.milliseconds for time in times] == sorted(
        (time.milliseconds for time in times), reverse=True
    )


def test_the_verbs_take_a_program(classics: CompressedModel, classics_packed: Artifact) -> None:
    """``evaluate``, ``generate`` and ``bench`` run the file itself; this one has no cache."""
    examples = CLASSICS.parents[1]
    text = str(examples / "data" / "validation.txt")
    program, source = str(classics_packed.path), ("--source", str(CLASSICS))
    windows = ("--window", "16", "--max-windows", "4")
    found = invoke("evaluate", program, "--text", text, *windows, *source)
    expected = es.evaluate(classics, text=text, window=16, max_windows=4)
    assert found["perplexity"] == pytest.approx(expected.perplexity, rel=5e-3)
    assert (found["windows"], found["tokens"]) == (4, 60)

    options = ("--prompt", "It was a dark", "--tokens", "5", "--temperature", "0")
    said = invoke("generate", program, *options, *source)["continuation"]
    expected_text = es.generate(classics, "It was a dark", tokens=5, temperature=0)
    assert "It was a dark" + said == expected_text

    timed = invoke("bench", program, "--runs", "2", "--threads", "1")
    assert timed["what"] == "forward"
    assert 0 < timed["fastest"] <= timed["median"]
    assert timed["operators"][0]["milliseconds"] > 0


def test_a_longer_window_than_the_program_reads_is_told(classics_packed: Artifact) -> None:
    text = str(CLASSICS.parents[1] / "data" / "validation.txt")
    result = CliRunner().invoke(
        main, ["evaluate", str(classics_packed.path), "--text", text, "--source", str(CLASSICS)]
    )
    assert result.exit_code == 2
    assert "a window of 512 tokens; packed.pte reads 2 to 16 at once" in result.stderr


def invoke(*arguments: str) -> dict[str, Any]:
    """Return the JSON of a verb that ends well."""
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found
