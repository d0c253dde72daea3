"""A real file system of 20 MB that fills up: while layers are finished, while a result is saved."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.compression import Progress, compress
from edgesparse.errors import FormatError
from edgesparse.journal.beside import beside
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.store import saving

SIZE = "20m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system in memory that holds 20 MB; it needs root and Linux."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if mount is None or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root on Linux only")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def model() -> CapturedModel:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return es.load(nn.Sequential(*layers).eval(), example_inputs=torch.zeros(1, 1024))


def run(captured: CapturedModel, **options: object) -> CompressedModel:
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), method="magnitude", bits=4, quantizer="rtn")
    return compress(captured, es.plan(captured, es.Recipe((rule,))), **options)  # type: ignore[arg-type]


def fill(disk: Path) -> Path:
    """Use up what is free but for some kilobytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - (64 << 10)))
    return ballast


def weights(path: Path) -> bytes:
    return (path / "weights.safetensors").read_bytes()


def test_the_disk_fills_up_while_layers_are_finished(disk: Path) -> None:
    captured = model()
    earlier = run(captured).save(disk / "earlier")
    before = weights(earlier)

    def third(progress: Progress) -> None:
        if progress.done == 3:
            fill(disk)

    with pytest.raises(FormatError, match="No space left on device; finished layers are kept"):
        run(captured, journal=beside(disk / "small"), progress=third)
    assert weights(earlier) == before
    assert sorted(path.name for path in disk.iterdir()) == [".small.journal", "ballast", "earlier"]
    (disk / "ballast").unlink()
    done: list[str] = []
    resumed = run(captured, journal=beside(disk / "small"), progress=lambda p: done.append(p.name))
    assert len(done) == 6
    resumed.save(disk / "small")
    assert weights(disk / "small") == before


@pytest.mark.parametrize("foreseen", [True, False])
def test_the_disk_fills_up_while_a_result_is_saved(
    disk: Path, foreseen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = model()
    earlier = run(captured).save(disk / "small")
    before = weights(earlier)
    small = run(captured, journal=beside(disk / "small"))
    ballast = fill(disk)
    if not foreseen:  # the room was there when it was asked for
        monkeypatch.setattr(saving, "require_space", lambda *_: None)
    words = "are needed, .* are free" if foreseen else "cannot write .*No space left on device"
    with pytest.raises(FormatError, match=words):
        small.save(disk / "small", force=True)
    assert weights(earlier) == before
    names = sorted(path.name for path in disk.iterdir())
    assert names == [".small.journal", "ballast", "small"]
    ballast.unlink()
    again = run(captured, journal=beside(disk / "small"))
    again.save(disk / "small", force=True)
    assert weights(disk / "small") == before
