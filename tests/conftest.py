"""No test reads or writes what a user's own runs remember; how tests run scripts and kill runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest


class Killed(BaseException):
    """As sudden as a signal: no handler of the library sees it."""


class Step(Protocol):
    """What a run says when something is done."""

    done: int


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


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    """Return how a run ends that was killed."""
    return Killed


@pytest.fixture(scope="session")
def killed_after() -> Callable[[int], AbstractContextManager[Callable[[Step], None]]]:
    """Give a run the ``progress`` that kills it once so many things are done; it must end so."""

    @contextmanager
    def after(count: int) -> Iterator[Callable[[Step], None]]:
        def progress(step: Step) -> None:
            if step.done == count:
                raise Killed

        with pytest.raises(Killed):
            yield progress

    return after
