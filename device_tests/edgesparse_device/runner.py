"""How every runner is called and answers, whether the C++ one on a device or the host's child.

    runner --model m.pte --out DIR --warmup N --runs N [--library op.so] [--input DTYPE SHAPE FILE]…

It leaves DIR/output-0.bin, … and last DIR/result.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgesparse.errors import CorruptPack, DeviceError, EdgesparseError
from edgesparse.store.strict_json import parse_object
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, RawRun
from edgesparse_device.tensors import TensorSpec, read_raw

RESULT = "result.json"


def runner_arguments(
    bundle: Bundle,
    index: int,
    effort: Effort,
    *,
    model: str,
    out: str,
    input_path: Callable[[int], str],
) -> list[str]:
    """Return the arguments for case ``index``; paths are as the runner sees them."""
    arguments = ["--model", model, "--out", out]
    arguments += ["--warmup", str(effort.warmup), "--runs", str(effort.runs)]
    arguments += ["--limit", str(max(1, round(effort.limit)))]
    for position, spec in enumerate(bundle.cases[index].inputs):
        arguments += ["--input", spec.dtype, spec.shape_text, input_path(position)]
    return arguments


def local_arguments(bundle: Bundle, index: int, effort: Effort, out: Path) -> list[str]:
    """Return ``runner_arguments`` for a runner that reads the bundle where it is."""
    return runner_arguments(
        bundle,
        index,
        effort,
        model=str(bundle.artifact_path),
        out=str(out),
        input_path=lambda position: str(bundle.input_path(index, position)),
    )


def needs_operators(bundle: Bundle) -> bool:
    """Whether the program calls our own operators.

    Raises:
        DeviceError: It cannot be read.
    """
    from edgesparse_converters.executorch.program import read_program

    try:
        operators = read_program(bundle.artifact_path).operators
    except EdgesparseError as error:
        raise DeviceError(str(error)) from None
    return any(name.startswith("edgesparse::") for name in operators)


def read_result(folder: Path) -> RawRun:
    """Return what a runner left in ``folder``.

    Raises:
        DeviceError: The result is cut, or does not fit the outputs beside it.
    """
    try:
        result = parse_object((folder / RESULT).read_bytes(), RESULT)
        return _parse(folder, result)
    except (OSError, CorruptPack, KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"the runner's result cannot be read: {error}") from None


def _parse(folder: Path, result: dict[str, Any]) -> RawRun:
    specs = [
        TensorSpec.from_json({**output, "name": f"output-{i}"}, RESULT)
        for i, output in enumerate(result["outputs"])
    ]
    peak = 1024 * (int(result["peak_kib"]) - int(result["base_kib"]))
    return RawRun(
        outputs=tuple(read_raw(folder / f"{spec.name}.bin", spec) for spec in specs),
        load_ms=float(result["load_ms"]),
        latency_ms=tuple(float(ms) for ms in result["latency_ms"]),
        peak_nbytes=max(0, peak) if int(result["peak_kib"]) else None,
    )
