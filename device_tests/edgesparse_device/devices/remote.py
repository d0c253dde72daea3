"""Devices behind a shell: push the kit, the program and the inputs, run, pull, clean up.

All that differs between a phone and a board is how a command and a file get there: a ``Shell``.
Commands are lists of arguments that a shell gets quoted, and what stands in a bundle is only ever
an argument.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from edgesparse.errors import DeviceError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, RawRun
from edgesparse_device.kit import Kit
from edgesparse_device.outcome import require_fine
from edgesparse_device.process import Finished
from edgesparse_device.record import DeviceInfo
from edgesparse_device.runner import RESULT, read_result, runner_arguments

COMMAND_LIMIT = 60.0
# The runner stops itself at its limit; this is how much longer the connection is waited for.
_GRACE = 20.0
_NEW_FOLDER = 'rm -rf "$1" && mkdir -p "$1/out"'


class Shell(Protocol):
    """A device's shell and file system.

    Attributes:
        root: Folder on the device for everything of ours.
    """

    root: str

    def run(self, argv: Sequence[str], *, timeout: float = COMMAND_LIMIT) -> Finished:
        """Run a command there, every argument quoted.

        Raises:
            DeviceLost: The device went away.
        """

    def push(self, files: Sequence[Path], folder: str) -> None:
        """Copy files into a folder there, under their own names and with their modes.

        Raises:
            DeviceError: No room or no permission there.
            DeviceLost: The device went away.
        """

    def pull(self, folder: str, names: Sequence[str], local: Path) -> None:
        """Copy files of a folder there into a folder here.

        Raises:
            DeviceError: No such file there.
            DeviceLost: The device went away.
        """


@contextmanager
def remote_session(
    shell: Shell, bundle: Bundle, kit: Kit, info: DeviceInfo
) -> Iterator[RemoteSession]:
    """Lay kit and program out in a new folder on the device; remove the folder at the end.

    Raises:
        DeviceError: No room, or the runner does not start there.
    """
    folder = f"{shell.root}/edgesparse-{secrets.token_hex(6)}"
    try:
        _require(shell.run(["mkdir", "-p", folder]), "a folder cannot be made")
        shell.push(kit.files, folder)
        about = shell.run(kit.command(folder, ["--about"]))
        require_fine(about, limit=COMMAND_LIMIT, output_is_whole=bool(about.stdout.strip()))
        shell.push([bundle.artifact_path], folder)
        features = tuple(json.loads(about.stdout)["cpu_features"])
        info = replace(info, cpu_features=features, tools={**info.tools, **kit.tools})
        yield RemoteSession(shell, bundle, kit, folder, info)
    finally:
        # A device that is gone cannot be cleaned; what made us leave is already being raised.
        with contextlib.suppress(DeviceError):
            shell.run(["rm", "-rf", folder])


class RemoteSession:
    """A bundle laid out on a device; see ``remote_session``."""

    def __init__(
        self, shell: Shell, bundle: Bundle, kit: Kit, folder: str, info: DeviceInfo
    ) -> None:
        self._shell = shell
        self._bundle = bundle
        self._kit = kit
        self._folder = folder
        self.info = info

    def execute(self, index: int, effort: Effort) -> RawRun:
        """Run one case in a process of its own on the device."""
        case, inputs = f"{self._folder}/case", range(len(self._bundle.cases[index].inputs))
        _require(self._shell.run(["sh", "-c", _NEW_FOLDER, "sh", case]), "no new folder")
        self._shell.push([self._bundle.input_path(index, i) for i in inputs], case)
        arguments = runner_arguments(
            self._bundle,
            index,
            effort,
            model=f"{self._folder}/{self._bundle.artifact}",
            out=f"{case}/out",
            input_path=lambda i: f"{case}/{self._bundle.input_path(index, i).name}",
        )
        finished = self._shell.run(
            self._kit.command(self._folder, arguments), timeout=effort.limit + _GRACE
        )
        require_fine(finished, limit=effort.limit, output_is_whole=True)
        names = [f"output-{i}.bin" for i in range(len(self._bundle.cases[index].outputs))]
        with TemporaryDirectory(prefix="edgesparse-pull-") as local:
            self._shell.pull(f"{case}/out", [RESULT, *names], Path(local))
            return read_result(Path(local))


def require_copied(finished: Finished, what: str) -> None:
    """Return if a copy to or from a device ended well.

    Raises:
        DeviceError: It did not; a full disk is told apart.
    """
    if not finished.returncode and not finished.timed_out:
        return
    said = (finished.stderr + finished.stdout).strip()[-300:] or "no reason given"
    if "No space left" in said:
        raise DeviceError(f"the device's disk is full: {what}: {said}")
    raise DeviceError(f"{what} cannot be copied: {said}")


def _require(finished: Finished, what: str) -> None:
    if finished.returncode or finished.timed_out:
        raise DeviceError(f"{what} on the device: {finished.stderr.strip()[-200:] or 'no reason'}")
