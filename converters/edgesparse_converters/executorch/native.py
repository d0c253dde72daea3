"""Our operators in this process's runtime: the C++ kernels, built once for this machine.

The library is built from the sources with the headers of the installed executorch, in seconds, and
kept under a name that says what it was built from. It is not linked to the runtime: the runtime's
own libraries are made visible first, so that one build works with every version. Registering an
operator twice aborts the process, so a registered one is never loaded again.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgesparse.errors import MissingTool, SourceError
from edgesparse_converters.executorch.flatbuffer import package_folder

SOURCES = Path(__file__).parents[3] / "kernels" / "native"
CACHE_VARIABLE = "EDGESPARSE_CACHE"

_log = logging.getLogger(__name__)
_RUNTIMES = (
    "lib/libexecutorch.so",
    "lib/libexecutorch_threadpool.so",
    "lib/libexecutorch.dylib",
    "lib/libexecutorch_threadpool.dylib",
)
_OLDER_RUNTIME = "extension/pybindings/_portable_lib*.so"


def load_operators() -> None:
    """Register our operators with the runtime of this process, building them if need be.

    Raises:
        MissingDependency: executorch is not installed.
        MissingTool: A C++ compiler or cmake is not installed.
        SourceError: The build failed; the compiler's last words are in the message.
    """
    from executorch.runtime import Runtime

    from edgesparse_converters.executorch.operators import EMBEDDING, LINEAR

    names = Runtime.get().operator_registry.operator_names
    if LINEAR in names and EMBEDDING in names:
        return
    library = build()
    for runtime in _runtime_libraries():
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))
    if LINEAR not in Runtime.get().operator_registry.operator_names:
        raise SourceError(f"{library} was loaded but registered nothing; remove it and try again")


def build() -> Path:
    """Return the library, built now unless it was built from these sources before.

    Raises:
        MissingTool: A C++ compiler or cmake is not installed.
        SourceError: The build failed, or the sources are not here.
    """
    if not SOURCES.is_dir():
        raise SourceError(
            f"the sources of the native kernels are not at {SOURCES}: they are part of the "
            "repository, not of the wheel; build them there with `make native`"
        )
    target = cache_folder() / f"libedgesparse_executorch-{fingerprint()}.so"
    if target.exists():
        return target
    for tool in ("cmake", os.environ.get("CXX", "c++")):
        if shutil.which(tool) is None:
            raise MissingTool(
                f"packed operators are built on the host that runs them, which needs {tool}; "
                "install cmake and a C++ compiler (Debian: apt install cmake g++; macOS: "
                "xcode-select --install), or export with lowering=xnnpack"
            )
    _log.info("building the ExecuTorch operators, once for this machine")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build.", dir=target.parent) as folder:
        include = package_folder() / "include"
        options = ["-DBUILD_SHARED_LIBS=ON", f"-DEXECUTORCH_INCLUDE_DIR={include}"]
        _run(["cmake", "-S", str(SOURCES / "executorch"), "-B", folder, *options])
        _run(["cmake", "--build", folder, "--parallel", "2"])
        built = next(Path(folder).glob("libedgesparse_executorch.*"))
        built.replace(target)  # whole or not at all, whoever else builds at the same time
    return target


def cache_folder() -> Path:
    """Return where built libraries are kept: $EDGESPARSE_CACHE, else the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgesparse"


def fingerprint() -> str:
    """Return a digest of everything the library is built from."""
    digest = hashlib.sha256(str(package_folder()).encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".cpp", ".hpp", ".h") or path.name == "CMakeLists.txt":
            digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _runtime_libraries() -> list[Path]:
    """Return the libraries that hold the runtime, of whichever version is installed."""
    package = package_folder()
    found = [package / name for name in _RUNTIMES if (package / name).exists()]
    return found or sorted(package.glob(_OLDER_RUNTIME))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        telling = [line for line in said if "error" in line.lower()] or said
        raise SourceError(
            f"building the native kernels failed at `{' '.join(command[:2])}`: "
            + " | ".join(telling[:3])
        )


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
