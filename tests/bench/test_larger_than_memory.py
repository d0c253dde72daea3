"""A short run of ``bench/larger_than_memory.py``: a process that is told a limit keeps it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "larger_than_memory.py"


@pytest.mark.slow
def test_the_limit_is_kept_and_every_layer_is_measured(tmp_path: Path) -> None:
    # 165 million parameters are 660 MB in float32, on top of 900 MB that the program itself takes:
    # whole, the model would not fit.
    arguments = ("--layers", "18", "--hidden", "1024", "--inner", "2048", "--heads", "2",
                 "--vocabulary", "4096", "--limit", "1.3GB")  # fmt: skip
    done = subprocess.run(
        [sys.executable, BENCH, "--folder", tmp_path / "large", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "18 layers" in done.stdout
    found = re.findall(r"processor: ([0-9. ]+);", done.stdout)
    assert [len(line.split()) for line in found] == [17, 18]
    assert not (tmp_path / "large").exists()
