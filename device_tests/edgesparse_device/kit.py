"""Kits: everything a Linux or Android machine needs to run a ``.pte``, in one folder.

    edgesparse-run             the runner, compiled from device_tests/runner
    libexecutorch*.so          the runtime, out of the executorch wheel for that processor
    libedgesparse_executorch.so  our operators, if the program calls them
    ld-linux-….so, libc.so.6 … the compiler's own C library and its loader

The runner is started through that loader, so that neither the age nor the kind of the device's C
library matters. Kits are built on first use and kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgesparse_converters.executorch.native import SOURCES as KERNELS
from edgesparse_converters.executorch.native import cache_folder

from edgesparse.errors import DeviceError
from edgesparse_device.machine import versions
from edgesparse_device.process import run_process
from edgesparse_device.wheel import runtime_package

logger = logging.getLogger(__name__)

RUNNER_SOURCES = Path(__file__).parents[1] / "runner"
RUNNER = "edgesparse-run"
OPERATORS = "libedgesparse_executorch.so"
_RUNTIME = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
)
_C_LIBRARIES = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libstdc++.so.6")
_COMPILE_LIMIT = 600.0


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """What builds for one processor.

    Attributes:
        arch: The processor, as ``uname -m`` says it.
        compiler: A g++ that makes programs for it.
        loader: The C library's program loader.
        package: Debian package with the compiler.
    """

    arch: str
    compiler: str
    loader: str
    package: str


TOOLCHAINS = {
    chain.arch: chain
    for chain in (
        Toolchain(
            arch="aarch64",
            compiler="aarch64-linux-gnu-g++",
            loader="ld-linux-aarch64.so.1",
            package="g++-aarch64-linux-gnu",
        ),
        Toolchain(
            arch="x86_64",
            compiler="x86_64-linux-gnu-g++",
            loader="ld-linux-x86-64.so.2",
            package="g++-x86-64-linux-gnu",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A finished kit.

    Attributes:
        path: The folder.
        toolchain: What it was built with.
        has_operators: Whether our operators are in it.
        tools: Versions of what is in it.
    """

    path: Path
    toolchain: Toolchain
    has_operators: bool
    tools: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Every file, the small ones first."""
        return sorted(self.path.iterdir(), key=lambda path: path.stat().st_size)

    def command(self, folder: str, arguments: Sequence[str]) -> list[str]:
        """Return the command line when the kit lies in ``folder``."""
        loader = f"{folder}/{self.toolchain.loader}"
        libraries = ["--library", f"{folder}/{OPERATORS}"] if self.has_operators else []
        start = [loader, "--library-path", folder, f"{folder}/{RUNNER}"]
        return [*start, *arguments, *(libraries if arguments != ["--about"] else [])]


def compiler_of(arch: str) -> tuple[Toolchain, Path]:
    """Return the toolchain for a processor and its compiler.

    Raises:
        DeviceError: No toolchain is known for it, or its compiler is not installed.
    """
    chain = TOOLCHAINS.get(arch)
    if chain is None:
        known = ", ".join(sorted(TOOLCHAINS))
        raise DeviceError(f"no runner can be built for the processor {arch!r}; known: {known}")
    names = [chain.compiler, "g++"] if arch == platform.machine() else [chain.compiler]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise DeviceError(
            f"{chain.compiler} is not installed, which compiles the runner for {arch}; "
            f"on Debian: apt install {chain.package}"
        )
    return chain, Path(found)


def kit_for(arch: str, *, operators: bool) -> Kit:
    """Return a kit for a processor, built now unless it was built from these sources before.

    Args:
        arch: As ``uname -m`` says it.
        operators: Whether the program calls our operators.

    Raises:
        DeviceError: No compiler, no runtime for that processor, or the build failed.
    """
    chain, compiler = compiler_of(arch)
    package = runtime_package(arch)
    target = cache_folder() / "kits" / f"{arch}-{_fingerprint(compiler, package, operators)}"
    tools = {**versions("executorch"), "compiler": _version_of(compiler)}
    kit = Kit(path=target, toolchain=chain, has_operators=operators, tools=tools)
    if target.exists():
        return kit
    logger.info("building the runner for %s, once for this machine", arch)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build.", dir=target.parent) as folder:
        new = Path(folder) / "kit"
        new.mkdir()
        _compile_runner(new, compiler, package)
        if operators:
            _compile_operators(new, Path(folder) / "operators", compiler, package)
        _collect(new, chain, compiler, package)
        if not target.exists():
            new.rename(target)
    return kit


def _compile_runner(kit: Path, compiler: Path, package: Path) -> None:
    include = package / "include"
    _build(
        compiler, "-std=c++20", "-O2", "-DC10_USING_CUSTOM_GENERATED_MACROS",
        "-isystem", include, "-isystem", include / "executorch/runtime/core/portable_type/c10",
        RUNNER_SOURCES / "main.cpp", "-o", kit / RUNNER,
        # Backends and kernels register themselves when loaded; nothing refers to them by name.
        "-L", package / "lib", "-Wl,--no-as-needed",
        *(f"-l:{name}" for name in _RUNTIME), "-ldl", "-s",
    )  # fmt: skip


def _compile_operators(kit: Path, folder: Path, compiler: Path, package: Path) -> None:
    arch = _machine_of(compiler)
    _build(
        "cmake", "-S", KERNELS / "executorch", "-B", folder, "-DBUILD_SHARED_LIBS=ON",
        "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={arch}", f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DEXECUTORCH_INCLUDE_DIR={package / 'include'}",
    )  # fmt: skip
    _build("cmake", "--build", folder, "--parallel", "2")
    shutil.copyfile(next(folder.rglob(OPERATORS)), kit / OPERATORS)


def _collect(kit: Path, chain: Toolchain, compiler: Path, package: Path) -> None:
    """Put the shared libraries beside the runner."""
    for name in _RUNTIME:
        shutil.copyfile(package / "lib" / name, kit / name)
    for name in (*_C_LIBRARIES, "libgcc_s.so.1", chain.loader):
        shutil.copyfile(_library(compiler, name), kit / name)
    for name in (chain.loader, RUNNER):
        (kit / name).chmod(0o755)


def _library(compiler: Path, name: str) -> Path:
    """Return a library as the compiler finds it.

    Raises:
        DeviceError: It does not have it.
    """
    answer = run_process([compiler, f"-print-file-name={name}"], timeout=60).stdout.strip()
    path = Path(answer)
    if not path.is_absolute():
        # The loader is not where libraries are on every system.
        path = next((p / name for p in (Path("/lib64"), Path("/lib")) if (p / name).exists()), path)
    if not path.exists():
        raise DeviceError(
            f"{compiler.name} has no {name}; install its C library, libc6-dev-*-cross"
        )
    return path


def _machine_of(compiler: Path) -> str:
    return run_process([compiler, "-dumpmachine"], timeout=60).stdout.partition("-")[0]


def _version_of(compiler: Path) -> str:
    lines = run_process([compiler, "--version"], timeout=60).stdout.splitlines()
    return lines[0] if lines else compiler.name


def _build(*command: str | Path) -> None:
    done = run_process(command, timeout=_COMPILE_LIMIT)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        telling = [line for line in said if "error" in line.lower()] or said or ["it said nothing"]
        raise DeviceError(
            f"building the runner failed at `{Path(command[0]).name}`: {' | '.join(telling[:3])}"
        )


def _fingerprint(compiler: Path, package: Path, operators: bool) -> str:
    """Return a digest of everything a kit is built from."""
    digest = hashlib.sha256(f"{_version_of(compiler)}\0{package}\0{operators}\0".encode())
    folders = [RUNNER_SOURCES, KERNELS] if operators else [RUNNER_SOURCES]
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix in (".cpp", ".hpp", ".h") or path.name == "CMakeLists.txt":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
