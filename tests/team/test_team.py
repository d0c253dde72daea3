"""Two processes on one job make what one makes, and the loss of one ends it in order."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgesparse.calibrate.team import Team, joined
from edgesparse.compression import compress
from edgesparse.errors import UsageError
from edgesparse.model import CompressedModel
from edgesparse.runtime.modules import build_decoded

WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """Return what the worker defines: the model, its data, its plan."""
    return runpy.run_path(str(WORKER))


def start(*arguments: object, size: int = 2) -> list[subprocess.Popen[str]]:
    """Start a team as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, WORKER, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def alone(job: dict[str, Any], method: str, **options: Any) -> CompressedModel:
    captured = job["model"]()
    return compress(captured, job["plan"](captured, method), job["data"](), **options)


# With 2:4 the rows of one matrix are solved by all.
@pytest.mark.parametrize(
    ("method", "size"),
    [("magnitude", 2), ("sparsegpt", 2), ("sparsegpt 2:4", 2), ("sparsegpt 2:4", 3)],
)
def test_several_make_what_one_makes(
    job: dict[str, Any], tmp_path: Path, method: str, size: int
) -> None:
    team = start(tmp_path / "small", method, size=size)
    messages = [process.communicate(timeout=120)[1] for process in team]
    assert [process.returncode for process in team] == [0] * size, messages
    captured = job["model"]()
    together = CompressedModel.load(tmp_path / "small", source=captured)
    one = alone(job, method)
    # Sums over batches are in float64: rounded, the order they were added in does not show.
    for name, packed in one.packed.items():
        for buffer, value in packed.buffers.items():
            assert np.array_equal(value, together.packed[name].buffers[buffer])
    inputs = torch.cat([batch["x"] for batch in job["data"]()])
    outputs = [build_decoded(small)(x=inputs) for small in (one, together)]
    wanted = captured.loader()(x=inputs)
    errors = [float((y - wanted).square().mean().detach()) for y in outputs]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_two_recover_as_one_with_twice_the_batches_in_a_step(
    job: dict[str, Any], tmp_path: Path
) -> None:
    team = start(tmp_path / "small", "recover")
    messages = [process.communicate(timeout=120)[1] for process in team]
    assert [process.returncode for process in team] == [0, 0], messages
    captured, compressed = job["model"](), alone(job, "magnitude")
    together = CompressedModel.load(tmp_path / "small", source=captured)
    one = job["recovery"](compressed, tmp_path / "one.safetensors", accumulate=2)
    moved = [codes_that_differ(compressed, one), codes_that_differ(one, together)]
    assert moved[0] > 0.02
    assert moved[1] < 0.002  # the sum of gradients is rounded in another order
    for name, value in one.kept.items():
        assert torch.allclose(value, together.kept[name], atol=1e-4)
    # What the team left to go on with is what one process leaves: all steps are done.
    state = tmp_path / "small.safetensors"
    assert codes_that_differ(job["recovery"](compressed, state, accumulate=2), together) == 0
    assert not list(tmp_path.glob(".*partial"))


def codes_that_differ(one: CompressedModel, other: CompressedModel) -> float:
    """Return the fraction of all codes that are not the same."""
    pairs = [(p.codes.values, other.packed[name].codes.values) for name, p in one.packed.items()]
    return float(np.mean(np.concatenate([(a != b).ravel() for a, b in pairs])))


def test_a_lost_process_ends_a_recovery(tmp_path: Path) -> None:
    leader, lost = start(tmp_path / "small", "recover", 3)
    message = leader.communicate(timeout=120)[1]
    lost.communicate(timeout=120)
    assert (leader.returncode, lost.returncode) == (1, 9)
    assert "error: another process of this job is gone" in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_a_lost_process_ends_the_job_and_what_was_finished_stays(
    job: dict[str, Any], tmp_path: Path
) -> None:
    leader, lost = start(tmp_path / "small", "wanda", 4)
    message = leader.communicate(timeout=120)[1]
    lost.communicate(timeout=120)
    assert lost.returncode == 9
    assert leader.returncode == 1
    assert "error: another process of this job is gone" in message
    assert "Traceback" not in message
    assert not (tmp_path / "small").exists()
    resumed = alone(job, "wanda", journal=tmp_path / "small.journal")
    assert len(list((tmp_path / "small.journal").glob("*.safetensors"))) >= 4
    assert list(resumed.packed) == list(alone(job, "wanda").packed)


def test_one_process_is_a_team_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as (team, device):
        assert (team.rank, team.size, team.leads, device) == (0, 1, True, "cpu")
        assert team.gather("x") == ["x"]
        assert team.share([1, 2]) == [1, 2]


def test_half_of_the_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="start it by torchrun"), joined("cpu"):
        pass


def test_every_batch_has_one_process() -> None:
    teams = [Team(rank, 3) for rank in range(3)]
    assert sorted(x for team in teams for x in team.share(range(10))) == list(range(10))
    with pytest.raises(UsageError, match="2 calibration batches for 3 processes"):
        teams[0].share([1, 2])


def test_several_processes_need_a_journal(job: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="need a journal"):
        alone(job, "wanda", team=Team(0, 2))
