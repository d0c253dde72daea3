"""A process that has the runtimes imported and forks one fresh child per case.

Importing the runtimes takes seconds, and forking does not: so each case is as alone as in a process
of its own, at a hundredth of the price. The template itself never opens an artifact.

    stdin    one JSON object a line: {"arguments": […], "target": …, "stderr": FILE}
    stdout   "started", and when the child ended its exit code, or minus the signal that ended it
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edgesparse.errors import DeviceError
from edgesparse_device.process import Finished

MODULE = "edgesparse_device.template"
START_LIMIT = 120.0
ENDED = "the process that starts the cases ended; is memory short?"


class Template:
    """A running template; see the module.

    Raises:
        DeviceError: It did not start.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout

    @property
    def is_running(self) -> bool:
        """Whether it can still start children."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._in.close()
        self._out.close()

    def run(
        self, arguments: Sequence[str], *, target: str, stderr: Path, timeout: float
    ) -> Finished:
        """Run a child to its end; one that is not in time takes the template with it.

        Args:
            arguments: Of ``edgesparse_device.child``.
            target: Whose runtime it needs; imported before the clock starts.
            stderr: File that gets the child's complaints.
            timeout: Seconds after which the child is given up.

        Raises:
            DeviceError: The template itself is gone.
        """
        job = {"arguments": list(arguments), "target": target, "stderr": str(stderr)}
        try:
            self._in.write(json.dumps(job).encode() + b"\n")
            self._in.flush()
        except BrokenPipeError:
            raise DeviceError(ENDED) from None
        answer = self._answer(START_LIMIT) and self._answer(timeout)
        if answer is None:
            self.close()
        said = stderr.read_text(encoding="utf-8", errors="replace") if stderr.exists() else ""
        code = int(answer) if answer else -signal.SIGKILL
        return Finished(returncode=code, stdout="", stderr=said, timed_out=answer is None)

    def _answer(self, timeout: float) -> str | None:
        """Return the next line, None when it does not come in time.

        Raises:
            DeviceError: The template ended.
        """
        end, line = time.monotonic() + timeout, b""
        while not line.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._out], [], [], left)[0]:
                return None
            byte = os.read(self._out.fileno(), 1)
            if not byte:
                raise DeviceError(ENDED)
            line += byte
        return line.decode().strip()


def shared() -> Template:
    """Return this process's template, started when first asked for and when the last one ended.

    It ends with this process: at exit, or when its stdin is closed because this one was killed.

    Raises:
        DeviceError: It did not start.
    """
    if _started and _started[0].is_running:
        return _started[0]
    _started.clear()
    template = Template()
    atexit.register(template.close)
    _started.append(template)
    return template


_started: list[Template] = []


def serve() -> None:
    """Import what children need, then fork one for every line of stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    from edgesparse_device.child import main, preload

    for line in sys.stdin:
        job = json.loads(line)
        preload(job["target"])
        print("started", file=answers, flush=True)
        pid = os.fork()
        if pid == 0:
            _redirect(job["stderr"])
            code = 1
            try:
                code = main(job["arguments"])
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _redirect(path: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


if __name__ == "__main__":
    serve()
