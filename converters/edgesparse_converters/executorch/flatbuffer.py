"""Flatbuffers to JSON with the ``flatc`` and the schemas inside the executorch package.

The package's own readers import its whole compiler, five seconds; a file is inspected in a tenth.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from edgesparse.errors import MissingDependency

PROGRAM_SCHEMA = "exir/_serialize/program.fbs"
TENSORS_SCHEMA = "extension/flat_tensor/serialize/flat_tensor.fbs"
XNNPACK_SCHEMA = "backends/xnnpack/serialization/runtime_schema.fbs"

_NOT_FINITE = re.compile(rb"(:\s*|\[\s*|,\s*)(-?inf|nan)\b")


def package_folder() -> Path:
    """Return the folder of the installed executorch package, without importing it.

    Raises:
        MissingDependency: It is not installed.
    """
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency("executorch", "executorch", "reading a .pte")
    return Path(next(iter(spec.submodule_search_locations)))


def to_json(data: bytes, schema: str) -> dict[str, Any]:
    """Return a flatbuffer as JSON values; numbers that are not finite become null.

    Args:
        data: The flatbuffer.
        schema: Its schema, relative to the package's folder.

    Raises:
        ValueError: Not a flatbuffer of this schema.
    """
    package = package_folder()
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "data.bin"
        binary.write_bytes(data)
        arguments = ["--json", "--defaults-json", "--strict-json", "--raw-binary", "-o", folder]
        command = [str(package / "data/bin/flatc"), *arguments, str(package / schema), "--"]
        done = subprocess.run([*command, str(binary)], capture_output=True, check=False)
        text = binary.with_suffix(".json")
        if done.returncode or not text.exists():
            raise ValueError(f"flatc refuses it: {done.stderr.decode(errors='replace')[:200]}")
        value = json.loads(_NOT_FINITE.sub(rb"\1null", text.read_bytes()))
    if not isinstance(value, dict):
        raise ValueError("flatc gave no table")
    return value
