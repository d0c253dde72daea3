"""Phones: the real adb client, against a phone on loopback that runs the real runner."""

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
from contextlib import contextmanager
from pathlib import Path

import pytest
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, device_named, devices_named, list_devices
from edgesparse_device.devices.adb import connected
from edgesparse_device.record import Record, Status
from edgesparse_device.running import Run, run_bundle

from edgesparse.errors import DeviceError, UsageError

Make = Callable[..., Bundle]
QUICK = Effort(warmup=1, runs=2, limit=60)
# Far more runs than there is time for: still going whenever the test does something to it.
ENDLESS = Effort(warmup=1, runs=1_000_000, limit=60)

pytest.importorskip("executorch")
pytestmark = [
    pytest.mark.skipif(shutil.which("adb") is None, reason="adb is not installed"),
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("g++") is None,
        reason="the runner for this machine needs Linux and g++",
    ),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """An adb server of our own, so that nobody's real phones are touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


class Phone:
    """A running phone."""

    def __init__(self, root: Path, storage: Path, abi: str, emulator: str) -> None:
        port = free_port()
        self.serial, self.storage = f"127.0.0.1:{port}", storage
        program = Path(__file__).with_name("phone.py")
        self.process = subprocess.Popen(
            [sys.executable, program, str(port), str(root), abi, emulator],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"listening\n"
        subprocess.run(["adb", "connect", self.serial], check=True, capture_output=True)

    @property
    def left(self) -> list[str]:
        return [path.name for path in self.storage.iterdir()]

    def unplug(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def phone(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Phone]]:
    phones = []
    storage = tmp_path / "local storage's"  # a name no shell may take apart
    storage.mkdir()
    monkeypatch.setenv("EDGESPARSE_ADB_ROOT", str(storage))

    def start(abi: str = "x86_64", emulator: str = "") -> Phone:
        root = tmp_path / f"phone-{len(phones)}"
        root.mkdir()
        phones.append(Phone(root, storage, abi, emulator))
        return phones[-1]

    yield start
    for phone in phones:
        subprocess.run(["adb", "disconnect", phone.serial], check=False, capture_output=True)
        if phone.process.poll() is None:
            phone.unplug()


def run(bundle: Bundle, phone: Phone, effort: Effort = QUICK) -> Record:
    return run_bundle(bundle, [device_named(f"adb:{phone.serial}")], Run(effort=effort))[0]


@contextmanager
def happening(action: Callable[[], object], *, once: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as something else is true, while the block goes on."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not once() and time.monotonic() < end:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def running_case(phone: Phone) -> bool:
    """Whether the runner has written its first output."""
    return any(phone.storage.glob("edgesparse-*/case/out/output-0.bin"))


def test_a_phone_runs_a_bundle_and_nothing_stays_on_it(make_bundle: Make, phone):
    x86 = phone()
    record = run(make_bundle(2), x86)

    assert record.ok, record.verdict
    assert record.device.os == "Android 14"
    assert record.device.abi == "x86_64"
    assert "Loopback" in record.device.cpu
    assert not record.device.emulated
    assert x86.left == []


@pytest.mark.skipif(
    shutil.which("qemu-aarch64-static") is None or shutil.which("aarch64-linux-gnu-g++") is None,
    reason="the ARM cross compiler or qemu is not installed",
)
def test_an_arm_phone_gets_the_arm_runner(make_bundle: Make, phone):
    arm = phone("arm64-v8a", "qemu-aarch64-static")
    record = run(make_bundle(), arm)

    assert record.ok, record.verdict
    assert record.device.abi == "aarch64"
    assert "asimd" in record.device.cpu_features


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None, reason="the ARM cross compiler is not installed"
)
def test_a_phone_with_another_processor_than_it_says(make_bundle: Make, phone):
    liar = phone("arm64-v8a")
    record = run(make_bundle(), liar)

    assert "another processor" in record.error
    assert liar.left == []


def test_an_unknown_processor_is_named(make_bundle: Make, phone):
    record = run(make_bundle(), phone("armeabi-v7a"))
    assert "armeabi-v7a" in record.error
    assert "arm64-v8a" in record.error


def test_unplugged_in_the_middle_and_the_other_phone_goes_on(make_bundle: Make, phone):
    first, second = phone(), phone()
    bundle = make_bundle()
    effort = Effort(warmup=1, runs=200_000, limit=60)  # about a second
    with happening(first.unplug, once=lambda: running_case(first)):
        devices = devices_named(f"adb:{first.serial},adb:{second.serial}")
        lost, kept = run_bundle(bundle, devices, Run(effort=effort))

    assert "went away" in lost.error
    assert lost.cases == ()
    assert kept.ok, kept.verdict


def test_a_full_phone(make_bundle: Make, phone, small_disk: Path, monkeypatch: pytest.MonkeyPatch):
    full = phone()
    monkeypatch.setenv("EDGESPARSE_ADB_ROOT", str(small_disk))
    record = run(make_bundle(), full)

    assert "disk is full" in record.error
    assert list(small_disk.iterdir()) == []


def test_a_runner_that_crashes_names_the_signal(make_bundle: Make, phone):
    device = phone()

    def crash() -> None:
        names = {link: (link / "cmdline").read_bytes() for link in Path("/proc").glob("[0-9]*")}
        for link, words in names.items():
            if b"edgesparse-run" in words and str(device.storage).encode() in words.split(b"\0")[0]:
                os.kill(int(link.name), signal.SIGSEGV)

    with happening(crash, once=lambda: running_case(device)):
        record = run(make_bundle(), device, ENDLESS)

    assert record.cases[0].status is Status.FAILED
    assert "SIGSEGV" in record.cases[0].error
    assert device.left == []


def test_a_runner_that_does_not_end_is_stopped(make_bundle: Make, phone):
    device = phone()
    record = run(make_bundle(), device, Effort(warmup=1, runs=1_000_000, limit=1))

    assert "still running after 1 s" in record.cases[0].error
    assert device.left == []


def test_no_phone_and_names_that_are_none(server: None, make_bundle: Make):
    assert connected() == {}
    assert [d.reason for d in list_devices() if d.name == "adb"] == [
        "0 phones are connected; connect one by USB"
    ]
    with pytest.raises(DeviceError, match="not connected"):
        device_named("adb:nobody").describe()
    with pytest.raises(UsageError, match="serial number"):
        device_named("adb:$(reboot)")
