"""What a device is, and the registry of the kinds there are.

A device is named ``kind`` or ``kind:address``: ``host``, ``qemu-arm64:cortex-a53``, ``adb:SERIAL``.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from edgesparse.errors import DeviceError, UsageError
from edgesparse.registry import Registry
from edgesparse_device.bundle import Bundle
from edgesparse_device.record import DeviceInfo


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How often a case is executed and how long it may take.

    Attributes:
        warmup: Executions before the clock; at least 1.
        runs: Executions that are timed; at least 1.
        limit: Seconds for all of it, loading included.
    """

    warmup: int = 2
    runs: int = 10
    limit: float = 120.0

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.runs < 1 or not 0 < self.limit < 1e6:
            raise UsageError(
                f"warmup {self.warmup}, runs {self.runs}, limit {self.limit:g} s: expected at "
                "least 1, at least 1, and more than 0 seconds"
            )


@dataclass(frozen=True, kw_only=True)
class RawRun:
    """What a device gave for one case.

    Attributes:
        outputs: In the artifact's order.
        load_ms: Time to load the artifact.
        latency_ms: Time of every counted execution.
        peak_nbytes: Memory that loading and executing added; None if it cannot be told.
    """

    outputs: tuple[NDArray[Any], ...]
    load_ms: float
    latency_ms: tuple[float, ...]
    peak_nbytes: int | None


class Session(Protocol):
    """A bundle laid out on a device.

    Attributes:
        info: The device, with what only shows when it is in use.
    """

    info: DeviceInfo

    def execute(self, index: int, effort: Effort) -> RawRun:
        """Run case ``index`` of the bundle.

        Raises:
            DeviceError: It failed; another case may still work.
            DeviceLost: The device went away.
        """


class Device(Protocol):
    """One device.

    Attributes:
        name: As the user names it.
        targets: Exporters whose artifacts it runs.
    """

    name: str
    targets: frozenset[str]

    def describe(self, target: str = "") -> DeviceInfo:
        """Return what it is.

        Args:
            target: What it is wanted for: a device may be real for one and emulate another.

        Raises:
            DeviceError: It cannot be used; the message says what is missing and how to get it.
        """

    def open(self, bundle: Bundle) -> AbstractContextManager[Session]:
        """Lay the bundle out; leave nothing behind when the block ends.

        Raises:
            DeviceError: It cannot be used, or has no room.
        """


class DeviceKind(Protocol):
    """A kind of device."""

    def find(self) -> Iterable[str]:
        """Return the names of the devices of this kind to list, usable or not."""

    def device(self, address: str) -> Device:
        """Return the device at ``address``, "" for the only or default one; nothing is started.

        Raises:
            UsageError: An address that this kind of device cannot have.
        """


DEVICES: Registry[DeviceKind] = Registry(
    "device",
    {
        "host": "edgesparse_device.devices.host:KIND",
        "qemu-arm64": "edgesparse_device.devices.qemu:KIND",
        "adb": "edgesparse_device.devices.adb:KIND",
        "ssh": "edgesparse_device.devices.ssh:KIND",
        "mac": "edgesparse_device.devices.mac:KIND",
    },
)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of the device list: what it is, or why it cannot be used."""

    name: str
    info: DeviceInfo | None = None
    reason: str = ""


def device_named(name: str) -> Device:
    """Return the device ``kind`` or ``kind:address``.

    Raises:
        UnknownName: No such kind of device.
        UsageError: An address that this kind of device cannot have.
    """
    kind, _, address = name.partition(":")
    return DEVICES.get(kind).device(address)


def devices_named(text: str) -> list[Device]:
    """Return the devices of a comma-separated list, each once.

    Raises:
        UsageError: An empty list, or a name that stands in it twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"devices {text!r}: expected distinct names, such as host,qemu-arm64")
    return [device_named(name) for name in names]


def list_devices() -> list[Listed]:
    """Return every device that can be found, with its description or the reason it is no use."""
    return [_listed(name) for kind in DEVICES for name in DEVICES.get(kind).find()]


def _listed(name: str) -> Listed:
    try:
        return Listed(name=name, info=device_named(name).describe())
    except DeviceError as error:
        return Listed(name=name, reason=str(error))
