"""No test reads or writes what the user's own runs remember; how tests run scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measured losses in a directory of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def run_script() -> Callable[[Path, Path, int], str]:
    """Run a script in a folder within so many seconds; return what it printed."""

    def run(script: Path, folder: Path, seconds: int) -> str:
        done = subprocess.run(
            [sys.executable, script],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
