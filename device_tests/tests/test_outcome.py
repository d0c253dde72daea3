"""What the end of a runner means, and child processes that leave nothing behind."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from edgesparse_device.outcome import require_fine
from edgesparse_device.process import Finished, run_process, signal_name

from edgesparse.errors import DeviceError


def finished(code: int, stderr: str = "", *, timed_out: bool = False) -> Finished:
    return Finished(returncode=code, stdout="", stderr=stderr, timed_out=timed_out)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (finished(-signal.SIGKILL, timed_out=True), "still running after 5 s"),
        (finished(-signal.SIGALRM), "still running after 5 s"),
        (finished(128 + signal.SIGALRM), "still running after 5 s"),
        (finished(-signal.SIGSEGV), "crashed with SIGSEGV"),
        (finished(128 + signal.SIGABRT, "error: double free"), "SIGABRT: double free"),
        (finished(12, "Missing operator: [0] a::b.out"), "no kernel for a::b.out"),
        (finished(126, "sh: ./r: Exec format error"), "another processor"),
        (finished(15, "error: x: No space left on device"), "disk is full"),
        (finished(14, "noise\nerror: execute: 0x12"), "the execution failed: execute: 0x12"),
        (finished(3), "exit code 3"),
    ],
)
def test_every_end_has_its_words(end: Finished, words: str):
    with pytest.raises(DeviceError, match=words):
        require_fine(end, limit=5, output_is_whole=True)


def test_a_good_end_without_a_result():
    require_fine(finished(0), limit=5, output_is_whole=True)
    with pytest.raises(DeviceError, match="without a result"):
        require_fine(finished(0), limit=5, output_is_whole=False)


def test_a_process_and_its_children_end_in_time(tmp_path: Path):
    note = tmp_path / "note"
    program = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    end = run_process([sys.executable, "-c", program], timeout=5)
    assert end.timed_out
    child = Path(f"/proc/{note.read_text()}/stat")
    limit = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < limit:
        time.sleep(0.01)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_output_is_kept_to_its_end():
    end = run_process([sys.executable, "-c", "print('x' * 200000 + 'end')"], timeout=60)
    assert end.stdout.endswith("xend\n")
    assert len(end.stdout) == 1 << 16


def test_a_program_that_does_not_exist():
    with pytest.raises(DeviceError, match="cannot be started"):
        run_process(["/nonexistent/program"], timeout=5)


def test_signals_by_name():
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(99) == "signal 99"
