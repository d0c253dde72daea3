"""The bundled language model, end to end: half of the weights gone, the rest in four bits."""

from pathlib import Path

import numpy as np
import pytest
from edgesparse_converters.coreml.package import Package

import edgesparse as es
from edgesparse.exporting import EXPORTERS

MODEL = Path(__file__).parents[3] / "examples/models/classics-4m"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def small(compressed):
    return compressed(es.load(MODEL), group_size=128)


@pytest.fixture(scope="module")
def artifact(small, tmp_path_factory):
    return es.export(small, path=tmp_path_factory.mktemp("classics") / "classics.mlpackage")


def test_every_weight_and_the_output_are_the_packed_models(small, artifact):
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    assert len(verdict.layers) == len(small.packed) == 29
    half = verdict.outputs[1]
    assert half.name == "logits (float16)"
    assert half.relative_error < 5e-3


def test_the_weight_file_is_what_theory_says(small, artifact):
    """1 bit of mask a weight, 4 a kept one, 16 a scale of 128; the rest is a few records."""
    weights = [packed.codes for packed in small.packed.values()]
    bits = sum(w.keep_mask.size + 4 * w.keep_mask.sum() + 16 * w.scales.size for w in weights)
    found = (artifact.path / WEIGHTS).stat().st_size
    # one 64-byte record and up to 63 of alignment a blob, three blobs a weight; norms and biases
    assert found == pytest.approx(bits / 8, rel=0.02)


def test_the_prediction_is_close(small, artifact):
    predicted = EXPORTERS.get("coreml").predict_nbytes(small.plan)
    assert predicted == pytest.approx(artifact.nbytes, rel=0.01)


def test_a_chosen_length(small, tmp_path):
    artifact = es.export(small, path=tmp_path / "long.mlpackage", tokens=40)
    main = Package(artifact.path).program.functions["main"]
    assert [named.type.shape for named in main.inputs] == [(1, 40)]
    outputs = EXPORTERS.get("coreml").run(artifact.path, {"input_ids": np.zeros((1, 40), np.int32)})
    assert outputs["logits"].shape == (1, 40, 4096)
