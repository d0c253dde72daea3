"""``ssh:HOST``: a Linux board, through the system's own ``ssh`` client.

HOST is anything ``ssh`` takes: a name out of its configuration, ``user@board.local``, or
``ssh://user@board.local:2222``. Keys, ports and jump hosts belong into the configuration;
EDGESPARSE_SSH_CONFIG names another one. The board needs ``sh`` and the usual small commands.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgesparse.errors import DeviceError, UsageError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Session
from edgesparse_device.devices.remote import COMMAND_LIMIT, remote_session
from edgesparse_device.kit import kit_for
from edgesparse_device.machine import parse_cpuinfo
from edgesparse_device.outcome import DeviceLost
from edgesparse_device.process import Finished, run_process
from edgesparse_device.record import DeviceInfo
from edgesparse_device.runner import needs_operators

_TRANSFER_LIMIT = 600.0
# ssh's own exit code, which no command of ours has.
_CONNECTION_FAILED = 255
# No questions, and a board that falls silent is given up after 15 seconds.
_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
    "LogLevel=ERROR",
)  # fmt: skip


class SshShell:
    """One board's shell and files."""

    def __init__(self, client: Path, host: str) -> None:
        config = os.environ.get("EDGESPARSE_SSH_CONFIG")
        options = [word for option in _OPTIONS for word in ("-o", option)]
        self._host = host
        self._command = [str(client), "-T", *(["-F", config] if config else []), *options]
        self.root = os.environ.get("EDGESPARSE_SSH_ROOT", "/tmp")

    def run(self, argv: Sequence[str], *, timeout: float = COMMAND_LIMIT) -> Finished:
        """Run a command on the board."""
        command = [*self._command, "--", self._host, shlex.join(argv)]
        return self._alive(run_process(command, timeout=timeout))

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the board."""
        command = [*self._command, "--", self._host, f"cat > {shlex.quote(remote)}"]
        with local.open("rb") as file:
            finished = self._alive(run_process(command, timeout=_TRANSFER_LIMIT, stdin=file))
        _require_copied(finished, local.name)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the board."""
        command = [*self._command, "--", self._host, shlex.join(["cat", remote])]
        with local.open("wb") as file:
            finished = self._alive(run_process(command, timeout=_TRANSFER_LIMIT, stdout=file))
        _require_copied(finished, local.name)

    def _alive(self, finished: Finished) -> Finished:
        if finished.returncode == _CONNECTION_FAILED:
            said = finished.stderr.strip()[-200:] or "the connection closed"
            raise DeviceLost(f"ssh:{self._host} cannot be reached: {said}")
        return finished


class SshDevice:
    """One board."""

    targets = frozenset({"executorch"})

    def __init__(self, host: str) -> None:
        self.name = f"ssh:{host}"
        self._host = host

    def describe(self, target: str = "") -> DeviceInfo:
        """Return what the board says of itself.

        Raises:
            DeviceError: No ssh client, or the board cannot be reached.
        """
        shell = self._shell()
        machine = shell.run(["uname", "-sm"]).stdout.split()
        if len(machine) != 2 or machine[0] != "Linux":
            raise DeviceError(
                f"{self.name}: expected Linux, found {' '.join(machine) or 'nothing'}"
            )
        release = shell.run(["cat", "/etc/os-release"]).stdout
        name = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
        cpu, features = parse_cpuinfo(shell.run(["cat", "/proc/cpuinfo"]).stdout)
        return DeviceInfo(
            name=self.name,
            os=name[1] if name else "Linux",
            abi=machine[1],
            cpu=cpu,
            cpu_features=features,
        )

    @contextmanager
    def open(self, bundle: Bundle) -> Iterator[Session]:
        """Lay the bundle out on the board; remove it at the end."""
        info = self.describe()
        kit = kit_for(info.abi, operators=needs_operators(bundle))
        with remote_session(self._shell(), bundle, kit, info) as session:
            yield session

    def _shell(self) -> SshShell:
        client = shutil.which("ssh")
        if client is None:
            raise DeviceError("ssh is not installed; on Debian: apt install openssh-client")
        return SshShell(Path(client), self._host)


class SshKind:
    """Boards cannot be found, only named."""

    def find(self) -> list[str]:
        """Return nothing."""
        return []

    def device(self, address: str) -> SshDevice:
        """Return the board at an address.

        Raises:
            UsageError: No address, or one that ssh would take for an option.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@:/%\[\]-]*", address):
            raise UsageError(f"ssh:{address}: expected a host, such as ssh:pi@board.local")
        return SshDevice(address)


KIND = SshKind()


def _require_copied(finished: Finished, name: str) -> None:
    if not finished.returncode and not finished.timed_out:
        return
    said = finished.stderr.strip()[-300:]
    if "No space left" in said:
        raise DeviceError(f"the device's disk is full: {name}: {said}")
    raise DeviceError(f"{name} cannot be copied: {said or 'no reason given'}")
