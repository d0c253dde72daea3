"""``host``: this machine, each case in a fresh process.

A ``.pte`` runs in the ExecuTorch runtime of the installed package; a ``.mlpackage`` in the Core ML
host executor, whose times are no Core ML times.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgesparse.errors import DeviceError, UsageError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, RawRun, Session
from edgesparse_device.machine import cpu, operating_system, versions
from edgesparse_device.outcome import require_fine
from edgesparse_device.record import DeviceInfo
from edgesparse_device.runner import RESULT, local_arguments, read_result
from edgesparse_device.template import shared

# The child stops itself at the limit; this is how much later it is killed if it cannot.
GRACE = 15.0


class HostDevice:
    """This machine."""

    name = "host"
    targets = frozenset({"executorch", "coreml"})

    def describe(self, target: str = "") -> DeviceInfo:
        """Return what this machine is; Core ML it emulates.

        Raises:
            DeviceError: Neither runtime is installed.
        """
        packages = [p for p in ("executorch", "coremltools") if importlib.util.find_spec(p)]
        if not packages:
            raise DeviceError(
                "neither executorch nor coremltools is installed; "
                "pip install 'edgesparse[executorch]'"
            )
        model, features = cpu()
        return DeviceInfo(
            name=self.name,
            os=operating_system(),
            abi=platform.machine(),
            cpu=model,
            cpu_features=features,
            emulated=target == "coreml",
            tools={"python": platform.python_version(), **versions("torch", *packages)},
        )

    @contextmanager
    def open(self, bundle: Bundle) -> Iterator[Session]:
        """Give a session whose cases run in processes of their own."""
        with TemporaryDirectory(prefix="edgesparse-host-") as folder:
            yield HostSession(bundle, Path(folder), self.describe(bundle.target))


class HostSession:
    """A bundle whose cases run in child processes.

    Args:
        bundle: The bundle; it stays where it is.
        folder: Where results go.
        info: The device.
        native: Whether a Mac's own Core ML runs the packages, not the host executor.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, info: DeviceInfo, *, native: bool = False
    ) -> None:
        self._bundle = bundle
        self._native = native
        self._folder = folder
        self.info = info

    def execute(self, index: int, effort: Effort) -> RawRun:
        """Run one case in a process of its own."""
        out = self._folder / f"{index:03d}"
        out.mkdir()
        case = self._bundle.cases[index]
        arguments = local_arguments(self._bundle, index, effort, out)
        for spec in case.inputs:
            arguments.append(f"--name={spec.name}")
        target = self._bundle.target
        if self._native:
            arguments.append("--native")
            target += ", native"
        finished = shared().run(
            arguments,
            target=target,
            stderr=out / "stderr.txt",
            timeout=effort.limit + GRACE,
        )
        require_fine(finished, limit=effort.limit, output_is_whole=(out / RESULT).exists())
        return read_result(out)


class HostKind:
    """There is exactly one host."""

    def find(self) -> list[str]:
        """Return the host's name."""
        return ["host"]

    def device(self, address: str) -> HostDevice:
        """Return the host.

        Raises:
            UsageError: It was given an address.
        """
        if address:
            raise UsageError(f"host:{address}: the host has no address; write host")
        return HostDevice()


KIND = HostKind()
