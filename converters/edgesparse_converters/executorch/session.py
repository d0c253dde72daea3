"""Programs executed on this host, by default in a process of their own.

The runtime can abort the process on a damaged file, and its reasons go to stderr while Python sees
a number. So a file is checked, run in a child, and what the child said is in the error.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError, UsageError
from edgesparse_converters.executorch.metadata import read_metadata
from edgesparse_converters.executorch.native import build
from edgesparse_converters.executorch.program import Program, read_program

Arrays = Mapping[str, NDArray[Any]]
CHILD = "edgesparse_converters.executorch._child"


def execute(
    path: Path,
    inputs: Sequence[Arrays],
    *,
    method: str = "forward",
    timeout: float = 600.0,
) -> list[dict[str, NDArray[Any]]]:
    """Run a method on each of ``inputs`` in one child process.

    Args:
        path: The ``.pte``.
        inputs: Arrays by input name, one mapping per call.
        method: The method to run.
        timeout: Seconds after which the child is killed.

    Returns:
        Outputs by name, one mapping per call.

    Raises:
        SourceError: The file is damaged, or the runtime refused or failed to run it.
        UsageError: Inputs that the program does not have, or of another dtype or rank.
    """
    program = read_program(path)
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        store_inputs(program, method, inputs, Path(folder))
        run_child(["run", str(path), method, folder, str(len(inputs))], path, timeout)
        names = read_metadata(program).outputs
        return [_outputs(Path(folder) / f"out{i}.npz", names) for i in range(len(inputs))]


def store_inputs(program: Program, method: str, inputs: Sequence[Arrays], folder: Path) -> None:
    """Write ``in{i}.npz`` for the child, each checked against the method's inputs.

    Raises:
        UsageError: Inputs that the method does not have, or of another dtype or shape.
    """
    names = read_metadata(program).inputs
    ordered = [in_order(program, method, names, arrays) for arrays in inputs]
    for i, call in enumerate(ordered):
        np.savez(folder / f"in{i}.npz", *call)


def in_order(
    program: Program, method: str, names: Sequence[str], arrays: Arrays
) -> list[NDArray[Any]]:
    """Return the arrays in the program's order, C-contiguous, checked against its inputs.

    Raises:
        UsageError: Inputs that the method does not have, or of another dtype or shape.
    """
    if method not in program.methods:
        known = ", ".join(sorted(program.methods))
        raise UsageError(f"{program.path}: no method {method!r}; it has {known}")
    plan = program.methods[method]
    if not names:
        names = tuple(f"input_{i}" for i in range(len(plan["inputs"])))
    if set(names) != set(arrays) or len(names) != len(plan["inputs"]):
        raise UsageError(
            f"{program.path.name}: inputs {sorted(arrays)}; expected {', '.join(names)}"
        )
    values = [plan["values"][index]["val"] for index in plan["inputs"]]
    return [
        _checked(name, np.ascontiguousarray(arrays[name]), value)
        for name, value in zip(names, values, strict=True)
    ]


DTYPES: dict[str, type[np.generic]] = {
    "BYTE": np.uint8, "CHAR": np.int8, "SHORT": np.int16, "INT": np.int32, "LONG": np.int64,
    "HALF": np.float16, "FLOAT": np.float32, "DOUBLE": np.float64, "BOOL": np.bool_,
}  # fmt: skip


def dtype_of(value: Mapping[str, Any]) -> type[np.generic]:
    """Return the dtype of a tensor value of a program.

    Raises:
        SourceError: No tensor, or one of a type that NumPy does not have.
    """
    found = DTYPES.get(value.get("scalar_type", ""))
    if found is None:
        kind = value.get("scalar_type", "no tensor")
        raise SourceError(f"the program has an input that is {kind}; it cannot be given here")
    return found


def zeros(program: Program, method: str) -> dict[str, NDArray[Any]]:
    """Return an array of zeros for every input of a method."""
    plan = program.methods[method]
    values = [plan["values"][index]["val"] for index in plan["inputs"]]
    names = read_metadata(program).inputs or tuple(f"input_{i}" for i in range(len(values)))
    return {
        name: np.zeros(value["sizes"], dtype_of(value))
        for name, value in zip(names, values, strict=True)
    }


def _checked(name: str, array: NDArray[Any], value: Mapping[str, Any]) -> NDArray[Any]:
    """Refuse what the runtime would refuse with a number, or misread."""
    dtype, sizes = dtype_of(value), tuple(value["sizes"])
    bounded = value["shape_dynamism"] != "STATIC"
    fits = len(sizes) == array.ndim and all(
        found <= size if bounded else found == size
        for found, size in zip(array.shape, sizes, strict=True)
    )
    if array.dtype != dtype or not fits:
        limit = "at most " if bounded else ""
        raise UsageError(
            f"input {name!r} is {array.dtype}{list(array.shape)}; the program takes "
            f"{limit}{np.dtype(dtype)}{list(sizes)}"
        )
    return array


def run_child(arguments: list[str], path: Path, timeout: float, *, module: str = CHILD) -> None:
    """Run the child module; its end with an error, a signal or too late is a SourceError.

    Raises:
        MissingTool: The program has packed operators, and no compiler is here to build them.
        SourceError: As above, and a damaged file.
    """
    build_kernels(read_program(path))
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{path}: still running after {timeout:g} s; it was stopped") from None
    if done.returncode:
        raise failure(path, done.returncode, done.stderr)


def build_kernels(program: Program) -> None:
    """Build our operators if the program has some: a missing compiler is named, not a failed child.

    Raises:
        MissingTool: No compiler is here.
    """
    if any(name.startswith("edgesparse::") for name in program.operators):
        build()


def failure(path: Path, code: int, said: bytes) -> SourceError:
    """Return the error for a child that ended with ``code`` and these words on stderr."""
    how = f"signal {-code}" if code < 0 else "an error"
    words = _reason(said.decode(errors="replace"))
    return SourceError(f"{path}: the runtime ended with {how}: {words}")


def _reason(said: str) -> str:
    """Return the lines that tell why: the runtime's own log, then the Python error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    logged = [line for line in lines if line.startswith("[") and not line.startswith("[cpuinfo")]
    return " | ".join([*logged[:3], *lines[-1:]])[:800] or "it said nothing"


def _outputs(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        arrays = [stored[key] for key in stored.files]
    if len(names) != len(arrays):
        names = tuple(f"output_{i}" for i in range(len(arrays)))
    return dict(zip(names, arrays, strict=True))
