"""The executorch package for a processor: headers and shared libraries.

For this machine's own processor it is the installed one; for another, the wheel of the same version
is downloaded once and its ``include`` and ``lib`` are kept in the user's cache.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgesparse_converters.executorch.flatbuffer import package_folder
from edgesparse_converters.executorch.native import cache_folder

from edgesparse.errors import DeviceError, MissingDependency
from edgesparse_device.process import run_process

_DOWNLOAD_LIMIT = 600.0
_KEPT = ("executorch/include/", "executorch/lib/")


def runtime_package(arch: str) -> Path:
    """Return the folder with ``include`` and ``lib`` of the runtime for a processor.

    Raises:
        DeviceError: executorch is not installed, too old, or cannot be downloaded.
    """
    try:
        installed = version("executorch").partition("+")[0]
        package = package_folder()
    except (PackageNotFoundError, MissingDependency):
        raise DeviceError(
            "executorch is not installed; pip install 'edgesparse[executorch]'"
        ) from None
    if arch == platform.machine() and sys.platform == "linux":
        _require_library(package, installed)
        return package
    target = cache_folder() / "wheels" / f"executorch-{installed}-{arch}"
    if not target.exists():
        _unpack(_wheel(installed, arch), target)
    _require_library(target / "executorch", installed)
    return target / "executorch"


def _require_library(package: Path, installed: str) -> None:
    if not (package / "lib" / "libexecutorch.so").exists():
        raise DeviceError(
            f"executorch {installed} has no libexecutorch.so to link a runner with; "
            "versions from 1.5 on have it"
        )


def _wheel(installed: str, arch: str) -> Path:
    """Return the wheel, out of the cache or downloaded into it."""
    folder = cache_folder() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"executorch-{installed}-*{arch}.whl"
    if found := next(folder.glob(pattern), None):
        return found
    done = run_process(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--only-binary=:all:", f"--platform=manylinux_2_28_{arch}",
            "--dest", folder, f"executorch=={installed}",
        ],
        timeout=_DOWNLOAD_LIMIT,
    )  # fmt: skip
    if found := next(folder.glob(pattern), None):
        return found
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    raise DeviceError(
        f"executorch {installed} for {arch} cannot be downloaded"
        + (f" ({said[-1].removeprefix('ERROR: ')})" if said else "")
        + f"; put its wheel into {folder}"
    )


def _unpack(wheel: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="unpack.", dir=target.parent) as folder:
        new = Path(folder) / "new"
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith(_KEPT)]
                archive.extractall(new, names)
        except (zipfile.BadZipFile, OSError) as error:
            raise DeviceError(f"{wheel}: cannot be unpacked: {error}; remove it") from None
        if not target.exists():
            new.rename(target)
