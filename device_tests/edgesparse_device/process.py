"""Child processes with a time limit, of which nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from edgesparse.errors import DeviceError

KEPT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that ended.

    Attributes:
        returncode: Its exit code; minus the signal's number when a signal ended it.
        stdout: What it said, the last 64 KiB.
        stderr: What it complained about, the last 64 KiB.
        timed_out: Whether it was killed because its time was over.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False


def run_process(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> Finished:
    """Run a program to its end, with all its children, without any shell.

    Args:
        argv: Program and arguments.
        timeout: Seconds after which it and its children are killed.
        cwd: Working directory.
        env: Variables added to this process's own.
        stdin: File it reads; None is an empty one.
        stdout: File that takes its output instead of the result.

    Raises:
        DeviceError: The program does not exist or is for another machine.
    """
    with TemporaryFile() as out, TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                [os.fspath(argument) for argument in argv],
                stdin=stdin or subprocess.DEVNULL,
                stdout=stdout or out,
                stderr=err,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"{argv[0]}: cannot be started: {error.strerror}") from None
        timed_out = False
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _kill_group(child)
        return Finished(
            returncode=child.returncode, stdout=_tail(out), stderr=_tail(err), timed_out=timed_out
        )


def signal_name(number: int) -> str:
    """Return ``SIGSEGV`` for 11; a number no signal has becomes ``signal 99``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    # The session outlives its leader if that one left children, so it is killed in any case.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - KEPT))
    return file.read().decode(errors="replace")
