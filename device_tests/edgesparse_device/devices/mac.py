"""``mac``: a Mac's own Core ML, through coremltools, each case in a fresh process."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgesparse.errors import DeviceError, UsageError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Session
from edgesparse_device.devices.host import HostSession
from edgesparse_device.devices.placement import placement
from edgesparse_device.machine import cpu, operating_system, versions
from edgesparse_device.record import DeviceInfo


class MacDevice:
    """The Core ML of this machine."""

    name = "mac"
    targets = frozenset({"coreml"})

    def describe(self, target: str = "") -> DeviceInfo:
        """Return what this Mac is.

        Raises:
            DeviceError: This is no Mac, or coremltools is missing.
        """
        if sys.platform != "darwin":
            raise DeviceError(
                f"needs macOS, this is {platform.system()}; host runs .mlpackage files here"
            )
        if importlib.util.find_spec("coremltools") is None:
            raise DeviceError("coremltools is not installed; pip install 'edgesparse[coreml]'")
        model, features = cpu()
        return DeviceInfo(
            name=self.name,
            os=operating_system(),
            abi=platform.machine(),
            cpu=model,
            cpu_features=features,
            tools={"python": platform.python_version(), **versions("coremltools")},
        )

    @contextmanager
    def open(self, bundle: Bundle) -> Iterator[Session]:
        """Give a session whose cases run in processes of their own; ask for the compute plan."""
        with TemporaryDirectory(prefix="edgesparse-mac-") as name:
            folder, info = Path(name), self.describe()
            info = replace(info, placement=placement(bundle.artifact_path, folder))
            yield HostSession(bundle, folder, info, native=True)


class MacKind:
    """There is at most one: this machine."""

    def find(self) -> list[str]:
        """Return its name, usable or not."""
        return ["mac"]

    def device(self, address: str) -> MacDevice:
        """Return it.

        Raises:
            UsageError: It was given an address.
        """
        if address:
            raise UsageError(f"mac:{address}: the Mac is this machine; write mac")
        return MacDevice()


KIND = MacKind()
