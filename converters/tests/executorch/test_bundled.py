"""A bundled program: what ExecuTorch's tools read in it, what damage does, what validate finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch.bundled import Case, read_bundled, write_bundled
from torch import Tensor, nn

import edgesparse as es
from edgesparse.errors import OutputExists, SourceError, UsageError
from edgesparse.exporting import Artifact
from edgesparse.model import CompressedModel

Compress = Callable[..., CompressedModel]

EXECUTORCH_CHECKS = """
import sys
from executorch.extension.pybindings import portable_lib
from edgesparse_converters.executorch.loading import register_kernels
register_kernels(("edgesparse::linear.activations_out",))
bundle = portable_lib._load_bundled_program_from_buffer(open(sys.argv[1], "rb").read())
for case in range(3):
    bundle.verify_result_with_bundled_expected_output("forward", case, 1e-5, 1e-5)
"""


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.fixture(scope="module")
def small(compress: Compress) -> CompressedModel:
    torch.manual_seed(0)
    half = {"sparsity": 0.5}
    return compress(Layers(), {"x": torch.ones(2, 64)}, first__weight=half, second__weight=half)


@pytest.fixture(scope="module")
def written(small: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return es.export(small, path=tmp_path_factory.mktemp("bundled") / "layers.pte", cases=3)


def test_the_file_lies_beside_the_program_and_holds_it(written: Artifact) -> None:
    assert sorted(p.name for p in written.path.parent.iterdir()) == ["layers.bpte", "layers.pte"]
    assert "layers.bpte beside it holds it with 3 cases of forward" in written.notes
    bundled = read_bundled(written.path.with_suffix(".bpte"))
    assert bundled.program == written.path.read_bytes()
    (cases,) = bundled.cases.values()
    assert [case.inputs[0].shape for case in cases] == [(2, 64)] * 3
    assert [case.outputs[0].shape for case in cases] == [(2, 32)] * 3


def test_executorch_itself_finds_the_outputs_right(written: Artifact) -> None:
    path = written.path.with_suffix(".bpte")
    command = [sys.executable, "-c", EXECUTORCH_CHECKS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_validate_runs_the_cases(small: CompressedModel, written: Artifact, tmp_path: Path) -> None:
    verdict = es.validate(written, small, calls=1)
    assert verdict.ok, verdict
    assert "output of 3 bundled cases" in {check.name for check in verdict.outputs}

    path = tmp_path / "layers.pte"
    path.write_bytes(written.path.read_bytes())
    (case, *_) = read_bundled(written.path.with_suffix(".bpte")).cases["forward"]
    wrong = Case(inputs=case.inputs, outputs=(case.outputs[0] * np.float32(1.01),))
    write_bundled(path.with_suffix(".bpte"), path, "forward", [wrong])
    assert [c.name for c in es.validate(path, small, calls=1).outputs if not c.ok][:1] == [
        "output of 1 bundled cases"
    ]

    path.with_suffix(".bpte").write_bytes(written.path.with_suffix(".bpte").read_bytes())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(SourceError, match=r"holds another program than layers\.pte"):
        es.validate(path, small, calls=1)


def test_every_type_and_shape_is_read_as_it_was_written(tmp_path: Path) -> None:
    program = tmp_path / "x.pte"
    program.write_bytes(b"not looked at" * 100)
    arrays = tuple(
        np.arange(12).reshape(shape).astype(dtype)
        for dtype in ("u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?")
        for shape in ((12,), (3, 4), (1, 2, 6))
    )
    write_bundled(tmp_path / "x.bpte", program, "step", [Case(inputs=arrays, outputs=arrays[:2])])
    bundled = read_bundled(tmp_path / "x.bpte")
    assert bundled.program == program.read_bytes()
    (case,) = bundled.cases["step"]
    for found, expected in zip(case.inputs, arrays, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert len(case.outputs) == 2


def test_a_file_in_the_way_is_not_replaced(small: CompressedModel, tmp_path: Path) -> None:
    (tmp_path / "x.bpte").write_text("mine")
    with pytest.raises(OutputExists, match=r"x\.bpte exists"):
        es.export(small, path=tmp_path / "x.pte", cases=1)
    assert [p.name for p in tmp_path.iterdir()] == ["x.bpte"]
    assert (tmp_path / "x.bpte").read_text() == "mine"
    with pytest.raises(UsageError, match="cases -1"):
        es.export(small, path=tmp_path / "y.pte", cases=-1)


@pytest.mark.parametrize("data", [b"", b"BP08", b"\0" * 100, b"\0\0\0\0BP07" + b"\0" * 90])
def test_what_is_no_bundled_program(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.bpte"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="not a bundled program"):
        read_bundled(path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_bundled(tmp_path / "nothing.bpte")


def test_damage_is_an_error_or_other_numbers_and_nothing_else(
    written: Artifact, tmp_path: Path
) -> None:
    data = written.path.with_suffix(".bpte").read_bytes()
    generator = np.random.default_rng(0)
    path, errors = tmp_path / "x.bpte", 0
    for turn in range(1000):
        changed = bytearray(
            data[: int(generator.integers(8, len(data)))] if turn % 4 == 0 else data
        )
        head = len(changed) if turn % 2 else min(len(changed), 600)
        for place in generator.integers(8, max(9, head), 4):
            if place < len(changed):
                changed[place] = generator.integers(0, 256)
        path.write_bytes(changed)
        try:
            read_bundled(path)
        except SourceError:
            errors += 1
    assert errors > 200  # a cut one alone is a quarter of them
