"""The host executor: control flow, state, what it refuses, and damaged packages."""

import json
import shutil

import numpy as np
import pytest
import torch
from edgesparse_converters.coreml import compat
from edgesparse_converters.coreml.execute import Executor
from edgesparse_converters.coreml.operators import call as calls
from edgesparse_converters.coreml.package import Package
from torch import nn

import edgesparse as es
from edgesparse.errors import EdgesparseError, SourceError, Unsupported, UsageError
from edgesparse.exporting import inspect

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def save(function, path, *shapes):
    """Convert a MIL function, written with coremltools' builder, to a package."""
    compat.apply()
    import coremltools as ct

    mb = ct.converters.mil.Builder
    specs = [mb.TensorSpec(shape=shape) for shape in shapes]

    def builder(x):  # coremltools looks at the names of its arguments
        return function(mb, x)

    with compat.quiet():
        program = mb.program(input_specs=specs, opset_version=ct.target.iOS18)(builder)
        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def test_a_branch_is_chosen_and_a_loop_ends(tmp_path):
    def function(mb, x):
        total = mb.reduce_sum(x=x, axes=[0], keep_dims=False)
        doubled, _ = mb.while_loop(
            _cond=lambda v, n: mb.less(x=n, y=100.0),
            _body=lambda v, n: (mb.mul(x=v, y=2.0), mb.mul(x=n, y=2.0)),
            loop_vars=(x, mb.abs(x=total)),
        )
        return mb.cond(
            pred=mb.greater(x=total, y=0.0),
            _true_fn=lambda: mb.add(x=doubled, y=1.0),
            _false_fn=lambda: mb.sub(x=doubled, y=1.0),
            name="y",
        )

    executor = Executor(save(function, tmp_path / "m.mlpackage", (2,)))
    # total 30: doubled twice to 120; total -60: doubled once
    assert executor.run({"x": np.float32([10, 20])})["y"].tolist() == [41, 81]
    assert executor.run({"x": np.float32([-20, -40])})["y"].tolist() == [-41, -81]


def test_an_operator_it_does_not_know_is_named(tmp_path):
    def function(mb, x):
        return mb.local_response_norm(x=x, size=3, name="y")

    path = save(function, tmp_path / "m.mlpackage", (1, 2, 3, 3))
    with pytest.raises(Unsupported, match="local_response_norm"):
        Executor(path)


@pytest.fixture(scope="module")
def package(tmp_path_factory, layers, compressed):
    path = tmp_path_factory.mktemp("package") / "m.mlpackage"
    es.export(compressed(layers, bits=4), path=path)
    return path


INPUTS = {"image": np.ones((1, 3, 8, 8), np.float32), "ids": np.zeros((1, 6), np.int32)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes image, ids; given none"),
        (INPUTS | {"more": INPUTS["ids"]}, "given image, ids, more"),
        (INPUTS | {"ids": np.zeros((1, 7), np.int32)}, r"shape \(1, 7\), expected \(1, 6\)"),
        (INPUTS | {"ids": np.zeros(6, np.int32)}, r"shape \(6,\)"),
    ],
)
def test_inputs_that_do_not_fit(package, inputs, message):
    with pytest.raises(UsageError, match=message):
        Executor(package).run(inputs)


def test_a_token_outside_of_the_vocabulary_is_an_error_not_a_crash(package):
    with pytest.raises(SourceError, match="gather"):
        Executor(package).run(INPUTS | {"ids": np.full((1, 6), 40, np.int32)})


def test_a_function_that_is_not_there(package):
    with pytest.raises(UsageError, match="no function 'prefill'; it has main"):
        Executor(package, function="prefill")


def edit_manifest(package, **changes):
    manifest = json.loads((package / "Manifest.json").read_text())
    entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    entry.update(changes)
    (package / "Manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["Manifest.json", MODEL, WEIGHTS])
@pytest.mark.parametrize("damage", ["absent", "empty", "half", "zeros"])
def test_a_broken_file_is_an_error(package, tmp_path, name, damage):
    path = shutil.copytree(package, tmp_path / "m.mlpackage")
    data = (path / name).read_bytes()
    (path / name).unlink()
    if damage != "absent":
        kept = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[damage]
        (path / name).write_bytes(kept)
    with pytest.raises(SourceError):
        Executor(path).run(INPUTS)


@pytest.mark.parametrize(
    "target",
    [
        "../../../outside.mlmodel",
        "/etc/passwd",
        "com.apple.CoreML",
        "a\0b",
        pytest.param("x" * 5000, id="long"),
    ],
)
def test_a_manifest_that_leads_out_of_the_package(package, tmp_path, target):
    path = shutil.copytree(package, tmp_path / "m.mlpackage")
    shutil.copy(path / MODEL, tmp_path / "outside.mlmodel")
    edit_manifest(path, path=target)
    with pytest.raises(SourceError, match="is not in the package"):
        Package(path)


def test_weights_outside_of_the_package(package, tmp_path):
    path = shutil.copytree(package, tmp_path / "m.mlpackage")
    shutil.copy(path / WEIGHTS, tmp_path / "x.bin")
    data = (path / MODEL).read_bytes()
    inside = b"@model_path/weights/weight.bin"
    outside = b"@model_path/../../.././/.x.bin"
    assert len(inside) == len(outside)
    (path / MODEL).write_bytes(data.replace(inside, outside))
    with pytest.raises(SourceError, match="outside the package"):
        Executor(path).run(INPUTS)


@pytest.mark.parametrize("name", ["Manifest.json", "Data", MODEL, WEIGHTS])
def test_links_out_of_the_package_are_not_followed(package, tmp_path, name):
    path = shutil.copytree(package, tmp_path / "m.mlpackage")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"not in the package|out of the package|outside the pa"):
        Executor(path).run(INPUTS)
    (tmp_path / "link.mlpackage").symlink_to(package)  # the package itself may be one
    Executor(tmp_path / "link.mlpackage").run(INPUTS)


def test_what_is_no_package(tmp_path):
    with pytest.raises(SourceError, match="not a Core ML package"):
        Package(tmp_path)


def mutate(data: bytearray, generator: np.random.Generator) -> bytearray:
    """Damage a file in one of the ways files are damaged."""
    at = int(generator.integers(0, max(len(data), 1)))
    kind = int(generator.integers(0, 5))
    if kind == 0:
        data[at] ^= 1 << int(generator.integers(0, 8))
    elif kind == 1:
        data[at : at + 8] = generator.bytes(8)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        data[at:at] = generator.bytes(int(generator.integers(1, 9)))
    else:
        data[at : at + 8] = bytes([generator.choice([0x00, 0x7F, 0x80, 0xFF])]) * 8
    return data


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 24)
        self.linear = nn.Linear(24, 32)

    def forward(self, ids):
        return torch.tanh(self.linear(self.tokens(ids)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, compressed):
    captured = es.load(Tiny().eval(), example_inputs={"ids": torch.arange(6)[None]})
    path = tmp_path_factory.mktemp("tiny") / "m.mlpackage"
    return es.export(compressed(captured, group_size=8), path=path).path


@pytest.mark.parametrize("count", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_packages_end_in_a_result_or_an_error(tiny, tmp_path, monkeypatch, count):
    monkeypatch.setattr(calls, "MAX_ELEMENTS", 1 << 22)
    path = shutil.copytree(tiny, tmp_path / "m.mlpackage")
    originals = {name: (path / name).read_bytes() for name in ("Manifest.json", MODEL, WEIGHTS)}
    generator = np.random.default_rng(0)
    ends = {"result": 0, "error": 0}
    for _ in range(count):
        name = str(generator.choice(list(originals), p=[0.1, 0.6, 0.3]))
        (path / name).write_bytes(mutate(bytearray(originals[name]), generator))
        try:
            Executor(path).run({"ids": INPUTS["ids"]})
            if generator.random() < 0.1:
                inspect(path)
            ends["result"] += 1
        except EdgesparseError:
            ends["error"] += 1
        (path / name).write_bytes(originals[name])
    assert min(ends.values()) > count // 20
