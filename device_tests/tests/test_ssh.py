"""Boards: the real ssh client, against an sshd on loopback with keys of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, device_named
from edgesparse_device.record import Record, Status, load_record
from edgesparse_device.running import Run, record_path, run_bundle

from edgesparse.errors import UsageError

Make = Callable[..., Bundle]
QUICK = Effort(warmup=1, runs=2, limit=60)
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH')}:/usr/sbin:/usr/local/sbin")

pytest.importorskip("executorch")
pytestmark = [
    pytest.mark.skipif(SSHD is None, reason="sshd is not installed"),
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("g++") is None,
        reason="the runner for this machine needs Linux and g++",
    ),
]


class Board:
    """A running sshd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        for name in ("host_key", "user_key"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(make, check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPidFile none\n"
            f"PasswordAuthentication no\nSetEnv PATH={self.programs}:{os.environ['PATH']}\n"
        )
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"Host board\nHostName 127.0.0.1\nPort {self.port}\nIdentityFile {folder}/user_key\n"
            f"IdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
            "StrictHostKeyChecking accept-new\n"
        )
        self.start()

    def start(self) -> None:
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks its unprivileged half in
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        log = (self.folder / "sshd.log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stderr=log)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.skip(f"sshd does not start: {(self.folder / 'sshd.log').read_text()[-300:]}")

    def unplug(self) -> None:
        """End sshd and every connection it serves, as a pulled cable would."""
        os.kill(self.process.pid, signal.SIGSTOP)  # no connection begins while they are counted
        served = [self.process.pid]
        for parent in served:
            served += children(parent)
        for pid in reversed(served):
            with suppress(ProcessLookupError):  # a connection that has just ended
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    started = Board(tmp_path / "sshd")
    root = tmp_path / '$HOME\'s "disk"'  # a name no shell may take apart
    root.mkdir()
    monkeypatch.setenv("EDGESPARSE_SSH_CONFIG", str(started.config))
    monkeypatch.setenv("EDGESPARSE_SSH_ROOT", str(root))
    yield started
    if started.process.poll() is None:
        started.unplug()


def root() -> Path:
    return Path(os.environ["EDGESPARSE_SSH_ROOT"])


def run(bundle: Bundle, effort: Effort = QUICK, records: Path | None = None) -> Record:
    return run_bundle(bundle, [device_named("ssh:board")], Run(effort=effort, records=records))[0]


def test_a_board_runs_a_bundle_and_nothing_stays_on_it(make_bundle: Make, board: Board):
    record = run(make_bundle(2))

    assert record.ok, record.verdict
    assert record.device.abi == os.uname().machine
    assert "Linux" in record.device.os
    assert record.device.cpu_features
    assert record.cases[0].latency is not None
    assert list(root().iterdir()) == []


def test_a_run_goes_on_after_the_board_went_away(make_bundle: Make, board: Board, tmp_path: Path):
    bundle, records = make_bundle(2), tmp_path / "records"
    path = record_path(records, "ssh:board")

    def pull_the_cable() -> None:
        while not path.exists():  # the first case is done
            time.sleep(0.02)
        board.unplug()

    thread = threading.Thread(target=pull_the_cable)
    thread.start()
    lost = run(bundle, Effort(warmup=1, runs=200_000, limit=60), records)
    thread.join()

    assert "cannot be reached" in lost.error
    assert "1 of 2 cases not run" in lost.error
    assert [case.status for case in lost.cases] == [Status.OK]
    assert load_record(path) == lost

    board.start()
    whole = run(bundle, QUICK, records)
    assert whole.ok, whole.verdict
    assert whole.cases[0] == lost.cases[0]  # kept, not run again
    assert load_record(path) == whole


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None, reason="the ARM cross compiler is not installed"
)
def test_a_board_with_another_processor_than_it_says(make_bundle: Make, board: Board):
    uname = board.programs / "uname"
    uname.write_text("#!/bin/sh\necho Linux aarch64\n")
    uname.chmod(0o755)
    record = run(make_bundle())

    assert "another processor" in record.error
    assert list(root().iterdir()) == []


def test_a_full_board(
    make_bundle: Make, board: Board, small_disk: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EDGESPARSE_SSH_ROOT", str(small_disk))
    record = run(make_bundle())

    assert "disk is full" in record.error
    assert list(small_disk.iterdir()) == []


def test_a_board_that_is_not_there(make_bundle: Make, board: Board):
    board.unplug()
    record = run(make_bundle())
    assert "ssh:board cannot be reached" in record.error


@pytest.mark.parametrize("address", ["", "-oProxyCommand=reboot", "a b", "board;reboot"])
def test_an_address_that_ssh_could_take_for_something_else(address: str):
    with pytest.raises(UsageError, match="expected a host"):
        device_named(f"ssh:{address}")
