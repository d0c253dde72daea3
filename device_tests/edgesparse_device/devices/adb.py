"""``adb:SERIAL``: an Android phone or emulator, through Android's own ``adb`` client.

The phone needs USB debugging and nothing else. Everything of ours is below /data/local/tmp, where
the shell user may execute files; EDGESPARSE_ADB_ROOT names another folder.
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
from edgesparse_device.devices.remote import COMMAND_LIMIT, remote_session, require_copied
from edgesparse_device.kit import kit_for
from edgesparse_device.outcome import DeviceLost
from edgesparse_device.process import Finished, run_process
from edgesparse_device.record import DeviceInfo
from edgesparse_device.runner import needs_operators

ROOT = "/data/local/tmp"
ABIS = {"arm64-v8a": "aarch64", "x86_64": "x86_64"}
_TRANSFER_LIMIT = 600.0
_PROPERTIES = ("ro.product.cpu.abi", "ro.product.model", "ro.build.version.release", "ro.soc.model")


class AdbShell:
    """One phone's shell and files."""

    def __init__(self, client: Path, serial: str) -> None:
        self._client = [str(client), "-s", serial]
        self._serial = serial
        self.root = os.environ.get("EDGESPARSE_ADB_ROOT", ROOT)

    def run(self, argv: Sequence[str], *, timeout: float = COMMAND_LIMIT) -> Finished:
        """Run a command on the phone."""
        return self._adb("shell", "-T", "-n", shlex.join(argv), timeout=timeout)

    def push(self, files: Sequence[Path], folder: str) -> None:
        """Copy files to the phone."""
        paths = [str(file) for file in files]
        finished = self._adb("push", *paths, folder, timeout=_TRANSFER_LIMIT)
        require_copied(finished, files[0].name)

    def pull(self, folder: str, names: Sequence[str], local: Path) -> None:
        """Copy files from the phone."""
        paths = [f"{folder}/{name}" for name in names]
        finished = self._adb("pull", *paths, str(local), timeout=_TRANSFER_LIMIT)
        require_copied(finished, names[0])

    def _adb(self, *arguments: str, timeout: float) -> Finished:
        finished = run_process([*self._client, *arguments], timeout=timeout)
        if finished.returncode or finished.timed_out:
            self._require_connected()
        return finished

    def _require_connected(self) -> None:
        """The client's exit codes do not tell a failed command from a phone that is gone."""
        state = run_process([*self._client, "get-state"], timeout=COMMAND_LIMIT)
        if state.stdout.strip() != "device":
            said = state.stderr.strip()[-200:] or state.stdout.strip()
            raise DeviceLost(f"adb:{self._serial} went away: {said}")


class AdbDevice:
    """One phone."""

    targets = frozenset({"executorch"})

    def __init__(self, serial: str) -> None:
        self.name = f"adb:{serial}" if serial else "adb"
        self._serial = serial

    def describe(self, target: str = "") -> DeviceInfo:
        """Return what the phone says of itself.

        Raises:
            DeviceError: No adb, no such phone, or one that did not allow debugging.
        """
        shell = self._shell()
        abi, model, release, soc = (
            shell.run(["getprop", name]).stdout.strip() for name in _PROPERTIES
        )
        if abi not in ABIS:
            raise DeviceError(
                f"{self.name}: its processor is {abi or 'unknown'}; runners exist for "
                + ", ".join(ABIS)
            )
        return DeviceInfo(
            name=self.name,
            os=f"Android {release}".strip(),
            abi=ABIS[abi],
            cpu=", ".join(filter(None, (model, soc))),
            tools={"adb": _version(_client())},
        )

    @contextmanager
    def open(self, bundle: Bundle) -> Iterator[Session]:
        """Lay the bundle out on the phone; remove it at the end."""
        info = self.describe()
        kit = kit_for(info.abi, operators=needs_operators(bundle))
        with remote_session(self._shell(), bundle, kit, info) as session:
            yield session

    def _shell(self) -> AdbShell:
        client, found = _client(), connected()
        serial = self._serial or (next(iter(found)) if len(found) == 1 else "")
        if not serial:
            raise DeviceError(
                f"{len(found)} phones are connected"
                + (f": {', '.join(found)}; write adb:SERIAL" if found else "; connect one by USB")
            )
        state = found.get(serial, "not connected")
        if state != "device":
            hint = "; allow USB debugging on its screen" if state == "unauthorized" else ""
            raise DeviceError(f"adb:{serial} is {state}{hint}")
        return AdbShell(client, serial)


class AdbKind:
    """Whatever the client lists."""

    def find(self) -> list[str]:
        """Return every phone the client knows, usable or not; ``adb`` itself when there is none."""
        try:
            return [f"adb:{serial}" for serial in connected()] or ["adb"]
        except DeviceError:
            return ["adb"]

    def device(self, address: str) -> AdbDevice:
        """Return the phone with a serial number, "" for the only one.

        Raises:
            UsageError: Not a serial number.
        """
        if not re.fullmatch(r"|[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]*", address):
            raise UsageError(f"adb:{address}: expected a serial number, as 'adb devices' shows it")
        return AdbDevice(address)


def connected() -> dict[str, str]:
    """Return the state of every phone the client knows, by serial number.

    Raises:
        DeviceError: No client, or its server does not start.
    """
    finished = run_process([_client(), "devices"], timeout=COMMAND_LIMIT)
    if finished.returncode or finished.timed_out:
        raise DeviceError(f"adb devices failed: {finished.stderr.strip()[-200:]}")
    lines = [line.split("\t") for line in finished.stdout.splitlines() if "\t" in line]
    return {serial: state for serial, state, *_ in lines}


def _client() -> Path:
    found = shutil.which("adb")
    if found is None:
        raise DeviceError("adb is not installed; on Debian: apt install adb")
    return Path(found)


def _version(client: Path) -> str:
    lines = run_process([client, "version"], timeout=COMMAND_LIMIT).stdout.splitlines()
    return next((line.partition(" ")[2] for line in lines if line.startswith("Version")), "unknown")


KIND = AdbKind()
