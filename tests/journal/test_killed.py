"""A short run of ``bench/kill_and_resume.py``: killed, gone on with, the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "kill_and_resume.py"


def rounds(what: str, count: int) -> str:
    done = subprocess.run(
        [sys.executable, BENCH, "--what", what, "--count", str(count), "--seed", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("what", ["compress", "recover"])
def test_layers_and_blocks_killed_at_random_moments(what: str) -> None:
    assert f"{what}: 3 kills found" in rounds(what, 3)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["export", "package"])
def test_an_export_killed_at_random_moments(what: str) -> None:
    assert "0 faults" in rounds(what, 10)
