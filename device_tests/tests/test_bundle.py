"""Bundles: whole, plain data, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgesparse_device.bundle import MANIFEST, Bundle, open_bundle
from edgesparse_device.making import CaseArrays, read_inputs, write_bundle
from edgesparse_device.tensors import DTYPES

from edgesparse.budget import Budget
from edgesparse.errors import CorruptPack, EdgesparseError, OutputExists, SourceError

NAMES = ("input", "reference")
ARTIFACT = b"whatever a program is"


def case(name: str = "a case", **inputs: Any) -> CaseArrays:
    arrays = inputs or {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return CaseArrays(name=name, inputs=arrays, outputs={"y": np.ones(4, np.float32)})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Bundle]:
    artifact = tmp_path / "model.pte"
    artifact.write_bytes(ARTIFACT)

    def make(*cases: CaseArrays, **options: Any) -> Bundle:
        given = cases or (case(),)
        return write_bundle(tmp_path / "out", artifact, given, target="executorch", **options)

    return make


def test_what_is_written_is_read(write):
    written = write(case("one"), case("two"), budget=Budget(file="2MB"), tolerance=0.01)
    read = open_bundle(written.path)
    assert read == written
    assert read.nbytes == len(ARTIFACT)
    assert [c.name for c in read.cases] == ["one", "two"]
    assert read.budget.file == 2_000_000
    np.testing.assert_array_equal(read.inputs(1)[0], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read.references(0)[0], np.ones(4))


def test_every_type_and_odd_shapes_keep_their_bytes(write):
    arrays = {
        f"{dtype}-{i}": np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
        for dtype in DTYPES
        for i, shape in enumerate([(), (0,), (1,), (3, 5), (2, 1, 7)])
    }
    bundle = write(case(**arrays))
    for array, read in zip(arrays.values(), bundle.inputs(0), strict=True):
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_nothing_in_it_can_be_executed(write):
    files = [path for path in write().path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".pte", ".json", ".bin"}
    assert not any(path.stat().st_mode & 0o111 for path in files)


def test_a_package_folder_is_an_artifact(tmp_path: Path):
    package = tmp_path / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data/weight.bin").write_bytes(b"12345")
    bundle = write_bundle(tmp_path / "out", package, [case()], target="coreml")
    assert bundle.nbytes == 5
    (bundle.artifact_path / "Data/weight.bin").write_bytes(b"12346")
    with pytest.raises(CorruptPack, match=r"model\.mlpackage is damaged"):
        open_bundle(bundle.path)


def test_what_exists_stays_unless_forced(write):
    first = write()
    with pytest.raises(OutputExists, match="--force"):
        write()
    assert open_bundle(first.path) == first
    assert write(case("new"), force=True).cases[0].name == "new"


def test_a_failure_leaves_nothing(write, tmp_path: Path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SourceError, match="distinct names"):
        write(case("same"), case("same"))
    with pytest.raises(SourceError, match="complex64 cannot be sent"):
        write(case(x=np.zeros(3, np.complex64)))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", "../up", "a/b", "$(reboot)", "a\nb", "-rf", "x" * 81, "a "])
def test_names_that_could_mean_something_are_refused(write, name: str):
    with pytest.raises(SourceError, match="case name"):
        write(case(name))


@pytest.mark.parametrize(
    "victim", ["model.pte", "cases/000/input-0.bin", "cases/000/reference-0.bin"]
)
def test_damage_is_found(write, victim: str):
    path = write().path
    data = bytearray((path / victim).read_bytes())
    data[0] ^= 1
    (path / victim).write_bytes(data)
    with pytest.raises(CorruptPack, match="is damaged"):
        open_bundle(path)
    (path / victim).unlink()
    with pytest.raises(CorruptPack, match="is missing"):
        open_bundle(path)


HOSTILE = {
    "path": lambda m: m.update(artifact="../../etc/passwd"),
    "format": lambda m: m.update(format=99),
    "no cases": lambda m: m.update(cases=[]),
    "shape": lambda m: m["cases"][0]["inputs"][0].update(shape=[-1, 3]),
    "shape type": lambda m: m["cases"][0]["inputs"][0].update(shape=["2"]),
    "dtype": lambda m: m["cases"][0]["outputs"][0].update(dtype="object"),
    "outputs": lambda m: m["cases"][0].update(outputs=[]),
    "extra input": lambda m: m["cases"][0]["inputs"].append({"dtype": "int8", "shape": [1]}),
    "cases type": lambda m: m.update(cases=7),
    "tolerance": lambda m: m.update(tolerance="much"),
    "budget": lambda m: m.update(budget={"file": -3}),
    "digest": lambda m: m.pop("sha256"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_an_error(write, change: Callable[[dict[str, Any]], object]):
    path = write().path / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(EdgesparseError):
        open_bundle(path.parent)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b'{"format": 1, "format": 1}'])
def test_a_manifest_that_is_no_json_object(write, text: bytes):
    path = write().path / MANIFEST
    path.write_bytes(text)
    with pytest.raises(CorruptPack):
        open_bundle(path.parent)


def test_no_bundle_there(tmp_path: Path):
    with pytest.raises(SourceError, match="device bundle"):
        open_bundle(tmp_path / "nothing")


def test_inputs_from_files(tmp_path: Path):
    from safetensors.numpy import save_file

    x = np.arange(4, dtype=np.int64)
    np.savez(tmp_path / "first.npz", x=x)
    save_file({"x": x}, tmp_path / "second.safetensors")
    read = read_inputs([tmp_path / "first.npz", tmp_path / "second.safetensors"])
    assert list(read) == ["first", "second"]
    for arrays in read.values():
        np.testing.assert_array_equal(arrays["x"], x)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for bad in ("objects.npz", "missing.npz", "text.txt"):
        with pytest.raises(SourceError, match=bad):
            read_inputs([tmp_path / bad])
