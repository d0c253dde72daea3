"""Devices behind a shell: push the kit, the program and the inputs, run, pull, clean up.

All that differs between a phone and a board is how a command and a file get there: a ``Shell``.
Commands are lists of arguments that a shell quotes; names on the device are made here, never taken
from a bundle.
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
_MODEL = "model.pte"


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

    def push(self, local: Path, remote: str) -> None:
        """Copy a file there.

        Raises:
            DeviceError: No room or no permission there.
            DeviceLost: The device went away.
        """

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file here.

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
        for file in kit.files:
            shell.push(file, f"{folder}/{file.name}")
        programs = [f"{folder}/{name}" for name in kit.programs]
        _require(shell.run(["chmod", "755", *programs]), "the runner cannot be made executable")
        about = shell.run(kit.command(folder, ["--about"]))
        require_fine(about, limit=COMMAND_LIMIT, output_is_whole=bool(about.stdout.strip()))
        shell.push(bundle.artifact_path, f"{folder}/{_MODEL}")
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
        case = f"{self._folder}/case"
        try:
            return self._execute(case, index, effort)
        finally:
            with contextlib.suppress(DeviceError):
                self._shell.run(["rm", "-rf", case])

    def _execute(self, case: str, index: int, effort: Effort) -> RawRun:
        _require(self._shell.run(["mkdir", "-p", f"{case}/out"]), "a folder cannot be made")
        for position in range(len(self._bundle.cases[index].inputs)):
            self._shell.push(
                self._bundle.input_path(index, position), f"{case}/input-{position}.bin"
            )
        arguments = runner_arguments(
            self._bundle,
            index,
            effort,
            model=f"{self._folder}/{_MODEL}",
            out=f"{case}/out",
            input_path=lambda position: f"{case}/input-{position}.bin",
        )
        finished = self._shell.run(
            self._kit.command(self._folder, arguments), timeout=effort.limit + _GRACE
        )
        if finished.returncode or finished.timed_out:
            require_fine(finished, limit=effort.limit, output_is_whole=True)
        with TemporaryDirectory(prefix="edgesparse-pull-") as local:
            self._shell.pull(f"{case}/out/{RESULT}", Path(local) / RESULT)
            count = len(json.loads((Path(local) / RESULT).read_bytes())["outputs"])
            for position in range(count):
                name = f"output-{position}.bin"
                self._shell.pull(f"{case}/out/{name}", Path(local) / name)
            return read_result(Path(local))


def _require(finished: Finished, what: str) -> None:
    if finished.returncode or finished.timed_out:
        raise DeviceError(f"{what} on the device: {finished.stderr.strip()[-200:] or 'no reason'}")
