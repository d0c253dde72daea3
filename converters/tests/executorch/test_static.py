"""The operators in an application's own build: what is declared, and a static library for ARM."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from edgesparse_converters.executorch import caching, routing  # noqa: F401 - define operators
from edgesparse_converters.executorch.flatbuffer import package_folder
from edgesparse_converters.executorch.native import SOURCES

FOLDER = SOURCES / "executorch"
CROSS = "aarch64-linux-gnu-g++"
AARCH64 = 183  # e_machine of ELF


def declared() -> dict[str, str]:
    """Return the C++ function of every schema in kernels.yaml."""
    entries = yaml.safe_load((FOLDER / "kernels.yaml").read_text())
    return {entry["func"]: entry["kernels"][0]["kernel_name"] for entry in entries}


def test_what_is_declared_is_what_is_registered_and_called() -> None:
    sources = "".join(path.read_text() for path in FOLDER.glob("*.cpp"))
    registered = dict(re.findall(r'EXECUTORCH_LIBRARY\(edgesparse, "(\S+)", \S+::(\w+)\)', sources))
    functions = {}
    for schema, function in declared().items():
        name, overload = re.match(r"edgesparse::(\w+)\.(\w+)\(", schema).groups()  # type: ignore[union-attr]
        operator = getattr(getattr(torch.ops.edgesparse, name), overload)
        assert str(operator._schema) == schema
        functions[f"{name}.{overload}"] = function.removeprefix("edgesparse_executorch::")
    assert functions == registered


@pytest.mark.slow
def test_a_static_library_for_arm_has_the_kernels_of_a_selective_build(tmp_path: Path) -> None:
    """Generated bindings look for kernels in ``native``, and register these themselves."""
    if shutil.which(CROSS) is None or shutil.which("cmake") is None:
        pytest.skip(f"needs cmake and {CROSS}")
    run(
        "cmake", "-S", FOLDER, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={CROSS}", "-DEDGESPARSE_REGISTER=OFF",
        f"-DEXECUTORCH_INCLUDE_DIR={package_folder() / 'include'}",
    )  # fmt: skip
    run("cmake", "--build", tmp_path, "--target", "edgesparse_executorch")
    library = tmp_path / "libedgesparse_executorch.a"
    assert machines(library.read_bytes()) == {AARCH64}
    symbols = run(CROSS.replace("g++", "nm"), "-C", "--defined-only", library)
    for function in kernels_of_generated_bindings():
        assert f" T {function}(" in symbols
    assert "register_kernel" not in symbols.partition("U ")[0]
    undefined = run(CROSS.replace("g++", "nm"), "-C", "--undefined-only", library)
    assert "register_kernels" not in undefined


def kernels_of_generated_bindings() -> list[str]:
    """Return the functions that ExecuTorch's own generator calls for kernels.yaml."""
    import torchgen
    from executorch.codegen.parse import parse_et_yaml

    tags = Path(torchgen.__file__).parent / "packaged/ATen/native/tags.yaml"
    parsed, _ = parse_et_yaml(str(FOLDER / "kernels.yaml"), str(tags))
    assert len(parsed) == len(declared())
    names = [name.replace("::", "::native::") for name in declared().values()]
    return sorted(names)


def machines(archive: bytes) -> set[int]:
    """Return the processors of all ELF objects in a static library."""
    starts = [match.start() for match in re.finditer(b"\x7fELF\x02\x01\x01", archive)]
    return {struct.unpack_from("<H", archive, start + 18)[0] for start in starts}


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
