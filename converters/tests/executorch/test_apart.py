"""Weights in a tensor file beside their program: both are read, run and proven together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch.apart import read_tensors
from edgesparse_converters.executorch.footprint import measure_peak
from edgesparse_converters.executorch.memory import memory_of
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.readback import read_weights
from torch import Tensor, nn

import edgesparse as es
from edgesparse.errors import OutputExists, SourceError, Unsupported, UsageError
from edgesparse.exporting import Artifact, inspect, run
from edgesparse.model import CompressedModel

Compress = Callable[..., CompressedModel]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 384), nn.Linear(384, 128)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)


@pytest.fixture(scope="module")
def small(compress: Compress) -> CompressedModel:
    torch.manual_seed(0)
    half = {"sparsity": 0.5}
    return compress(Layers(), {"x": torch.ones(2, 256)}, first__weight=half, second__weight=half)


@pytest.fixture(scope="module")
def written(small: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return es.export(small, path=tmp_path_factory.mktemp("apart") / "layers.pte", apart=True)


def copied(artifact: Artifact, folder: Path, *, weights: bytes | None) -> Path:
    """Put the program in another folder, with these bytes beside it."""
    path = folder / artifact.path.name
    path.write_bytes(artifact.path.read_bytes())
    if weights is not None:
        path.with_suffix(".ptd").write_bytes(weights)
    return path


def test_the_program_is_small_and_the_weights_are_beside_it(
    small: CompressedModel, written: Artifact
) -> None:
    program, weights = written.path, written.path.with_suffix(".ptd")
    assert sorted(p.name for p in program.parent.iterdir()) == ["layers.ptd", "layers.pte"]
    assert written.nbytes == program.stat().st_size + weights.stat().st_size
    assert "layers.ptd beside it holds its weights; the runtime needs both" in written.notes
    assert weights.stat().st_size > small.nbytes > 3 * program.stat().st_size
    named = read_tensors(weights)
    assert {name.rpartition(".")[2] for name in named} >= {"packed_0", "packed_1"}
    assert memory_of(read_program(program)).constants >= small.nbytes
    assert json.dumps(inspect(program))


def test_both_files_are_proven_together(small: CompressedModel, written: Artifact) -> None:
    verdict = es.validate(written, small, calls=2)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    assert len(verdict.layers) == 2
    x = np.ones((2, 256), np.float32)
    (found,) = run(written.path, {"x": x}).values()
    assert found.shape == (2, 128)
    assert measure_peak(written.path) is None or measure_peak(written.path)


def test_without_its_weights_it_says_so(
    small: CompressedModel, written: Artifact, tmp_path: Path
) -> None:
    path = copied(written, tmp_path, weights=None)
    with pytest.raises(SourceError, match=r"layers\.ptd: the program's weights cannot be read"):
        es.validate(path, small)
    with pytest.raises(SourceError, match=r"layers\.ptd"):
        run(path, {"x": np.ones((2, 256), np.float32)})


def test_a_changed_weight_is_found(
    small: CompressedModel, written: Artifact, tmp_path: Path
) -> None:
    data = bytearray(written.path.with_suffix(".ptd").read_bytes())
    codes = bytes(small.packed["first.weight"].buffers["codes"])
    place = data.find(codes)
    assert place > 0
    data[place + 50] ^= 1
    path = copied(written, tmp_path, weights=bytes(data))
    verdict = es.validate(path, small, calls=1)
    assert "first.weight" in {layer.name for layer in verdict.layers if not layer.ok}


def test_damaged_tensor_files_end_in_an_error(
    small: CompressedModel, written: Artifact, tmp_path: Path
) -> None:
    data = written.path.with_suffix(".ptd").read_bytes()
    cases = [
        b"", b"\0" * 100, data[:20], data[:47], data[: len(data) // 2], data[:-64],
        data[:4] + b"FT99" + data[8:], data[:8] + b"XXXX" + data[12:],
        data[:16] + b"\xff" * 8 + data[24:], data[:64] + b"\x5a" * 400 + data[464:],
    ]  # fmt: skip
    for i, weights in enumerate(cases):
        (tmp_path / str(i)).mkdir()
        path = copied(written, tmp_path / str(i), weights=weights)
        with pytest.raises(SourceError, match=r"layers\.ptd"):
            es.validate(path, small)


def test_weights_of_another_program_are_missed_by_name(
    written: Artifact, tmp_path: Path, compress: Compress
) -> None:
    other = compress(Single(), {"x": torch.ones(1, 64)}, only__weight={"sparsity": 0.5})
    strange = es.export(other, path=tmp_path / "other.pte", apart=True)
    assert read_program(strange.path).flatbuffer_nbytes == strange.path.stat().st_size
    assert es.validate(strange, other, calls=1).ok  # though it has neither segment nor header
    path = copied(written, tmp_path, weights=strange.path.with_suffix(".ptd").read_bytes())
    with pytest.raises(SourceError, match=r"has no tensor"):
        list(read_weights(read_program(path), "forward"))


def test_what_it_cannot_be_with(small: CompressedModel, compress: Compress, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no place for weights apart"):
        es.export(small, path=tmp_path / "x.pte", apart=True, cases=1)
    (tmp_path / "x.ptd").write_text("mine")
    with pytest.raises(OutputExists, match=r"x\.ptd exists"):
        es.export(small, path=tmp_path / "x.pte", apart=True)
    dense = compress(Single(), {"x": torch.ones(1, 64)}, only__weight={})
    with pytest.raises(Unsupported, match="all weights are XNNPACK's"):
        es.export(dense, path=tmp_path / "y.pte", apart=True, lowering="xnnpack")
    assert [p.name for p in tmp_path.iterdir()] == ["x.ptd"]
