"""``search``: points in processes of their own, a front, and going on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgesparse.errors import SourceError
from edgesparse.search import RECORD, Point, front_of, search

Cli = Callable[..., Result]


def point(name: str, nbytes: int | None, loss: float | None) -> Point:
    return Point(name=name, arguments=(), nbytes=nbytes, loss=loss)


def test_the_front_is_what_nothing_beats() -> None:
    found = [
        point("large", 30, 0.1), point("worse", 31, 0.2), point("small", 10, 0.5),
        point("middle", 20, 0.3), point("as small, worse", 10, 0.6), point("failed", None, None),
    ]  # fmt: skip
    assert [p.name for p in front_of(found)] == ["small", "middle", "large"]


NETWORK = (
    "import torch\n"
    "def make():\n"
    "    torch.manual_seed(0)\n"
    "    net = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 64)).eval()\n"
    "    return net, torch.ones(1, 256)\n"
)


def test_points_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    (tmp_path / "net.py").write_text(NETWORK)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, input=np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    points = [
        (size, ["net:make", "--calibration", str(inputs), "--budget", f"file={size}"])
        for size in ("60kB", "30kB", "1kB")
    ]
    folder = tmp_path / "found"
    first = search(points, folder, jobs=2)
    assert [p.nbytes is not None and p.nbytes <= limit for p, limit in
            zip(first, (60_000, 30_000), strict=False)] == [True, True]  # fmt: skip
    assert first[1].loss is not None
    assert first[0].loss is not None
    assert first[0].loss < first[1].loss
    assert "cannot be met" in first[2].error
    before = (folder / "60kB" / RECORD).stat().st_mtime_ns
    again = search(points[:1], folder, jobs=1)
    assert again == first[:1]
    assert (folder / "60kB" / RECORD).stat().st_mtime_ns == before
    with pytest.raises(SourceError, match="choose another folder"):
        search([("60kB", ["net:make", "--budget", "file=60kB"])], folder, jobs=1)


def test_a_size_that_is_none_runs_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("search", "net:make", "-o", tmp_path / "found", "--budgets", "1MB,much",
                 "--calibration", "x.npz")  # fmt: skip
    assert result.exit_code == 2
    assert not (tmp_path / "found").exists()


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1MB").mkdir()
    (tmp_path / "1MB" / RECORD).write_text(json.dumps({"name": "1MB"}))
    with pytest.raises(SourceError, match="no record of a search"):
        search([("1MB", ["net:make"])], tmp_path, jobs=1)
