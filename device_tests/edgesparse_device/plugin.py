"""A pytest plugin: every case of every bundle on every device is one test.

    pytest --edgesparse-device host,qemu-arm64 device_tests/cases

Without the option no bundle is collected. A bundle is laid out on a device once, when the first of
its cases is asked for there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edgesparse_device.record import CaseResult, Record

MANIFEST = "bundle.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("edgesparse", "bundles on devices")
    group.addoption(
        "--edgesparse-device",
        metavar="DEVICES",
        help="run the bundles found on these devices: host,qemu-arm64,adb:SERIAL,…",
    )
    group.addoption(
        "--edgesparse-records",
        type=Path,
        metavar="FOLDER",
        help="keep the records here, in a folder per bundle",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> BundleFile | None:
    """Collect every ``bundle.json``, if devices were asked for."""
    if file_path.name == MANIFEST and parent.config.getoption("--edgesparse-device"):
        return BundleFile.from_parent(parent, path=file_path)
    return None


class BundleFile(pytest.File):
    """One bundle."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield one test per device and case."""
        from edgesparse.errors import EdgesparseError
        from edgesparse_device.bundle import open_bundle
        from edgesparse_device.device import devices_named

        try:
            bundle = open_bundle(self.path.parent)
            devices = devices_named(self.config.getoption("--edgesparse-device"))
        except EdgesparseError as error:
            raise pytest.UsageError(str(error)) from None
        for device in devices:
            run = DeviceRun(self.path.parent, device.name, self._records())
            for case in bundle.cases:
                yield CaseItem.from_parent(
                    self, name=f"{device.name}-{case.name}", run=run, case=case.name
                )

    def _records(self) -> Path | None:
        folder: Path | None = self.config.getoption("--edgesparse-records")
        return folder / self.path.parent.name if folder else None


class DeviceRun:
    """A bundle on a device, run when first asked for."""

    def __init__(self, bundle: Path, device: str, records: Path | None) -> None:
        self._bundle = bundle
        self._device = device
        self._records = records
        self._record: Record | None = None

    @property
    def record(self) -> Record:
        """What it showed."""
        if self._record is None:
            from edgesparse_device.bundle import open_bundle
            from edgesparse_device.device import device_named
            from edgesparse_device.running import Run, run_bundle

            (self._record,) = run_bundle(
                open_bundle(self._bundle), [device_named(self._device)], Run(records=self._records)
            )
        return self._record


class CaseFailed(Exception):
    """A case that is not right, in one line."""


class CaseItem(pytest.Item):
    """One case on one device."""

    def __init__(self, *, run: DeviceRun, case: str, name: str, parent: pytest.Collector) -> None:
        super().__init__(name, parent)
        self._run = run
        self._case = case

    def runtest(self) -> None:
        """Hold the case's result against its reference.

        Raises:
            CaseFailed: It is wrong, the device failed, or the budget is broken.
        """
        record = self._run.record
        found: list[CaseResult] = [case for case in record.cases if case.name == self._case]
        reasons = [found[0].error] if found else [record.error or "it was not run"]
        reasons += record.broken_limits
        if any(reasons):
            raise CaseFailed("; ".join(filter(None, reasons)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        """Return the reason in one line; anything unforeseen with its traceback."""
        if isinstance(excinfo.value, CaseFailed):
            return f"{self.name}: {excinfo.value}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return where the test is."""
        return self.path, None, self.name
