"""A bundled program: what ExecuTorch makes of it, and what damage does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch.bundled import read_bundled
from torch import Tensor, nn

import edgesparse as es
from edgesparse.errors import SourceError
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
