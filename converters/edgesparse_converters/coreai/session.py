"""Assets opened and executed on this host by Core AI's own runtime, in a process of its own.

The runtime ends the process it lives in on some damaged assets, and writes to both streams. What
comes back is files: a description, constants, outputs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError, UsageError
from edgesparse_converters.coreml import blob
from edgesparse_converters.coreml.program import TensorType

Arrays = Mapping[str, NDArray[Any]]
CHILD = "edgesparse_converters.coreai._child"
TIMEOUT_SECONDS = 600.0
DTYPES = {
    "f16": "float16", "f32": "float32", "i1": "bool",
    **{f"si{bits}": f"int{bits}" for bits in (2, 4, 8, 16, 32)},
    **{f"ui{bits}": f"uint{bits}" for bits in (1, 2, 3, 4, 6, 8, 16, 32)},
}  # fmt: skip
"""Our names of Core AI's types of elements."""


def parse_type(text: str) -> TensorType:
    """Read a type as the compiler writes it.

    Example:
        >>> parse_type("96x64xui4")
        TensorType(dtype='uint4', shape=(96, 64), is_state=False)

    Raises:
        SourceError: A type of elements that is not known here.
    """
    *sizes, element = text.split("x")
    if element not in DTYPES or not all(size.isdecimal() or size == "?" for size in sizes):
        raise SourceError(f"a Core AI value of type {text[:80]!r}, which is not known here")
    shape = tuple(None if size == "?" else int(size) for size in sizes)
    return TensorType(dtype=DTYPES[element], shape=shape)


def describe(path: Path) -> dict[str, Any]:
    """Return functions, operators, constants and metadata of an asset.

    Raises:
        SourceError: Not an asset, or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        _call(path, "describe", folder)
        return _described(Path(folder))


def read_constants(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what ``describe`` returns, and every constant of a weight, unpacked.

    Constants of equal bytes may share a name and have different shapes.

    Raises:
        SourceError: Not an asset, or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        _call(path, "constants", folder)
        described = _described(Path(folder))
        with np.load(Path(folder) / "constants.npz", allow_pickle=False) as stored:
            packed = {name: stored[name] for name in stored.files}
    constants = {}
    for value in {value for weight in described["weights"] for value in weight.values()}:
        constant = described["constants"][value]
        constants[value] = _unpacked(constant["name"], packed, parse_type(constant["type"]))
    return described, constants


def run(path: Path, inputs: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
    """Execute an asset once for each of ``inputs``.

    Raises:
        UsageError: An input is missing, unknown or of another shape.
        SourceError: Not an asset, damaged, or the runtime fails.
    """
    types = input_types(describe(path))
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        for index, call in enumerate(inputs):
            arrays = _checked(call, types)
            np.savez(Path(folder) / f"in{index}.npz", **arrays)  # type: ignore[arg-type]  # flags of savez
        _call(path, "run", folder, str(len(inputs)))
        outputs = []
        for index in range(len(inputs)):
            with np.load(Path(folder) / f"out{index}.npz", allow_pickle=False) as stored:
                outputs.append({name: stored[name] for name in stored.files})
    return outputs


def input_types(described: Mapping[str, Any]) -> dict[str, TensorType]:
    """Return the types of the inputs of an asset's first function."""
    function = next(iter(described["functions"].values()))
    return {named["name"]: parse_type(named["type"]) for named in function["inputs"]}


def _checked(call: Arrays, types: Mapping[str, TensorType]) -> dict[str, NDArray[Any]]:
    if set(call) != set(types):
        given, known = ", ".join(call) or "none", ", ".join(types)
        raise UsageError(f"the asset takes {known}; given {given}")
    checked = {}
    for name, kind in types.items():
        array = np.ascontiguousarray(call[name])
        if array.ndim != len(kind.shape) or any(
            size not in (None, found) for size, found in zip(kind.shape, array.shape, strict=True)
        ):
            raise UsageError(f"input {name!r} has shape {array.shape}, expected {kind.shape}")
        checked[name] = array.astype(kind.dtype, copy=False)
    return checked


def _unpacked(name: str, stored: Arrays, kind: TensorType) -> NDArray[Any]:
    shape = tuple(size for size in kind.shape if size is not None)
    count, data = int(np.prod([1, *shape], dtype=object)), stored.get(name, np.zeros(0, np.uint8))
    if kind.dtype not in blob.TYPES or data.nbytes != blob.nbytes(kind.dtype, count):
        raise SourceError(f"the constant {name} has {data.nbytes} bytes for {kind}")
    return blob.unpack(memoryview(data.tobytes()), kind.dtype, count).reshape(shape)


def _described(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def _call(path: Path, *words: str) -> None:
    """Run the child on an asset.

    Raises:
        SourceError: It failed; the message ends with what it last said.
    """
    verb, *rest = words
    command = [sys.executable, "-m", CHILD, verb, str(path), *rest]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{path}: Core AI took more than {TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode:
        said = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1][:300]
        raise SourceError(f"{path}: Core AI cannot {verb} it: {said}")
