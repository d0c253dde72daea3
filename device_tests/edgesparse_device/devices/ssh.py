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
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from edgesparse.errors import DeviceError, UsageError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Session
from edgesparse_device.devices.remote import COMMAND_LIMIT, remote_session, require_copied
from edgesparse_device.kit import kit_for
from edgesparse_device.machine import parse_cpuinfo
from edgesparse_device.outcome import DeviceLost
from edgesparse_device.process import Finished, run_process
from edgesparse_device.record import DeviceInfo
from edgesparse_device.runner import needs_operators

_TRANSFER_LIMIT = 600.0
# ssh's own exit code, which no command of ours has.
_CONNECTION_FAILED = 255
_MARK = "-- edgesparse --"
_QUESTIONS = f"uname -sm; echo {_MARK}; cat /etc/os-release; echo {_MARK}; cat /proc/cpuinfo"
# No questions, and a board that falls silent is given up after 15 seconds.
_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
    "LogLevel=ERROR",
)  # fmt: skip


class SshShell:
    """One board's shell and files, over one connection that all commands share.

    Args:
        client: The ssh program.
        host: The board.
        socket: Where the shared connection is met; it ends a minute after its last use.
    """

    def __init__(self, client: Path, host: str, socket: Path) -> None:
        config = os.environ.get("EDGESPARSE_SSH_CONFIG")
        shared = ("ControlMaster=auto", f"ControlPath={socket}", "ControlPersist=60")
        options = [word for option in (*_OPTIONS, *shared) for word in ("-o", option)]
        self._host = host
        self._command = [str(client), "-T", *(["-F", config] if config else []), *options]
        self.root = os.environ.get("EDGESPARSE_SSH_ROOT", "/tmp")

    def close(self) -> None:
        """End the shared connection."""
        run_process([*self._command, "-O", "exit", "--", self._host], timeout=COMMAND_LIMIT)

    def run(self, argv: Sequence[str], *, timeout: float = COMMAND_LIMIT) -> Finished:
        """Run a command on the board."""
        return self._alive(run_process(self._remote(argv), timeout=timeout))

    def push(self, files: Sequence[Path], folder: str) -> None:
        """Copy files to the board, as one archive: every command costs a shell's start there."""
        with TemporaryFile() as archive:
            with tarfile.open(fileobj=archive, mode="w") as tar:
                for file in files:
                    tar.add(file, file.name)
            archive.seek(0)
            command = self._remote(["tar", "-xf", "-", "-C", folder])
            finished = self._alive(run_process(command, timeout=_TRANSFER_LIMIT, stdin=archive))
        require_copied(finished, files[0].name)

    def pull(self, folder: str, names: Sequence[str], local: Path) -> None:
        """Copy files from the board."""
        command = self._remote(["tar", "-cf", "-", "-C", folder, *names])
        with TemporaryFile() as archive:
            finished = self._alive(run_process(command, timeout=_TRANSFER_LIMIT, stdout=archive))
            require_copied(finished, names[0])
            archive.seek(0)
            try:
                with tarfile.open(fileobj=archive) as tar:
                    tar.extractall(local, filter="data")
            except tarfile.TarError as error:
                raise DeviceError(f"{names[0]}: the board sent no archive: {error}") from None

    def _remote(self, argv: Sequence[str]) -> list[str]:
        return [*self._command, "--", self._host, shlex.join(argv)]

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
        with self._shell() as shell:
            return self._ask(shell)

    def _ask(self, shell: SshShell) -> DeviceInfo:
        said = shell.run(["sh", "-c", _QUESTIONS]).stdout
        system, release, processor = (*said.split(_MARK), "", "")[:3]
        machine = system.split()
        if len(machine) != 2 or machine[0] != "Linux":
            found = " ".join(machine) or "nothing"
            raise DeviceError(f"{self.name}: expected a Linux machine, found {found}")
        name = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
        cpu, features = parse_cpuinfo(processor)
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
        with self._shell() as shell:
            info = self._ask(shell)
            kit = kit_for(info.abi, operators=needs_operators(bundle))
            with remote_session(shell, bundle, kit, info) as session:
                yield session

    @contextmanager
    def _shell(self) -> Iterator[SshShell]:
        client = shutil.which("ssh")
        if client is None:
            raise DeviceError("ssh is not installed; on Debian: apt install openssh-client")
        with TemporaryDirectory(prefix="es-ssh-") as folder:
            shell = SshShell(Path(client), self._host, Path(folder) / "s")
            try:
                yield shell
            finally:
                shell.close()


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
