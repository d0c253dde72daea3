"""``qemu-arm64``: an ARM processor played by qemu, running the ARM runner and kernels.

It proves what the ARM code computes and nothing about its speed. ``qemu-arm64:cortex-a53`` plays
that processor instead of one with every feature.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from edgesparse_converters.executorch.program import read_program
from numpy.typing import NDArray

from edgesparse.errors import DeviceError, UsageError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, RawRun, Session
from edgesparse_device.kit import Kit, compiler_of, kit_for
from edgesparse_device.machine import operating_system
from edgesparse_device.outcome import require_fine
from edgesparse_device.process import run_process
from edgesparse_device.record import DeviceInfo
from edgesparse_device.runner import RESULT, local_arguments, needs_operators, read_result
from edgesparse_device.tensors import write_raw

ARCH = "aarch64"
_GRACE = 15.0


class QemuDevice:
    """One emulated processor."""

    targets = frozenset({"executorch"})

    def __init__(self, cpu: str) -> None:
        self.name = f"qemu-arm64:{cpu}" if cpu else "qemu-arm64"
        self._cpu = cpu or "max"

    def describe(self, target: str = "") -> DeviceInfo:
        """Return what is emulated.

        Raises:
            DeviceError: qemu or the cross compiler is missing.
        """
        emulator = self._emulator()
        compiler_of(ARCH)
        version = run_process([emulator, "--version"], timeout=60).stdout
        found = re.search(r"version (\S+)", version)
        return DeviceInfo(
            name=self.name,
            os=f"{operating_system()}, user emulation",
            abi=ARCH,
            cpu=f"qemu {self._cpu}",
            emulated=True,
            tools={"qemu": found[1] if found else "unknown"},
        )

    @contextmanager
    def open(self, bundle: Bundle) -> Iterator[Session]:
        """Build the runner if need be, and ask the processor what it can do."""
        kit = kit_for(ARCH, operators=needs_operators(bundle))
        command = [str(self._emulator()), "-cpu", self._cpu]
        about = run_process([*command, *kit.command(str(kit.path), ["--about"])], timeout=60)
        if about.returncode:
            raise DeviceError(f"{self.name}: {about.stderr.strip()[-300:] or 'it does not start'}")
        info = self.describe()
        info = replace(
            info,
            cpu_features=tuple(json.loads(about.stdout)["cpu_features"]),
            tools={**info.tools, **kit.tools},
        )
        with TemporaryDirectory(prefix="edgesparse-qemu-") as folder:
            yield QemuSession(bundle, kit, command, Path(folder), info)

    def generate(
        self, program: Path, prompt: Sequence[int], *, tokens: int, limit: float = 600.0
    ) -> NDArray[np.int64]:
        """Continue ``prompt`` with the likeliest tokens, all in one process with one cache.

        Args:
            program: A ``.pte`` exported with ``context``.
            prompt: Token ids, at least one.
            tokens: How many to make.
            limit: Seconds after which it is stopped.

        Raises:
            DeviceError: It cannot be used, or the program fails.
        """
        operators = read_program(program).operators
        kit = kit_for(ARCH, operators=any(name.startswith("edgesparse::") for name in operators))
        with TemporaryDirectory(prefix="edgesparse-qemu-") as folder:
            text, out = Path(folder) / "prompt.bin", Path(folder) / "out"
            out.mkdir()
            write_raw(text, np.array(prompt, np.int64))
            arguments = ["--model", str(program.resolve()), "--out", str(out)]
            arguments += ["--limit", str(max(1, round(limit))), "--generate", str(tokens)]
            arguments += ["--input", "int64", str(len(prompt)), str(text)]
            finished = run_process(
                [str(self._emulator()), "-cpu", self._cpu, *kit.command(str(kit.path), arguments)],
                timeout=limit + _GRACE,
            )
            require_fine(finished, limit=limit, output_is_whole=(out / RESULT).exists())
            return read_result(out).outputs[0]

    @staticmethod
    def _emulator() -> Path:
        found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        if found is None:
            raise DeviceError(
                "qemu-aarch64 is not installed; on Debian: apt install qemu-user-static"
            )
        return Path(found)


class QemuSession:
    """A bundle whose cases run in emulator processes; it stays where it is."""

    def __init__(
        self, bundle: Bundle, kit: Kit, command: list[str], folder: Path, info: DeviceInfo
    ) -> None:
        self._bundle = bundle
        self._kit = kit
        self._command = command
        self._folder = folder
        self.info = info

    def execute(self, index: int, effort: Effort) -> RawRun:
        """Run one case in an emulator of its own."""
        out = self._folder / f"{index:03d}"
        out.mkdir()
        arguments = local_arguments(self._bundle, index, effort, out)
        finished = run_process(
            [*self._command, *self._kit.command(str(self._kit.path), arguments)],
            timeout=effort.limit + _GRACE,
        )
        require_fine(finished, limit=effort.limit, output_is_whole=(out / RESULT).exists())
        return read_result(out)


class QemuKind:
    """Any processor qemu knows, by its name there."""

    def find(self) -> list[str]:
        """Return the one with every feature."""
        return ["qemu-arm64"]

    def device(self, address: str) -> QemuDevice:
        """Return the processor ``address``, "" for the one with every feature.

        Raises:
            UsageError: Not the name of a processor.
        """
        if not re.fullmatch(r"[a-z0-9.-]*", address):
            raise UsageError(f"qemu-arm64:{address}: expected a processor, such as cortex-a53")
        return QemuDevice(address)


KIND = QemuKind()
