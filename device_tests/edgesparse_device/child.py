"""The process that executes one case on this host; called and answering like the C++ runner.

It is a process of its own because a damaged program can abort the runtime.
Started by ``edgesparse_device.template``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import DeviceError, EdgesparseError
from edgesparse_device import outcome
from edgesparse_device.runner import RESULT
from edgesparse_device.tensors import TensorSpec, read_raw, write_raw

Arrays = Sequence[NDArray[Any]]
Call = Callable[[], Arrays]
RUNTIMES = {
    "executorch": ("executorch.runtime", "edgesparse_converters.executorch.loading"),
    "coreml": ("edgesparse_converters.coreml.execute",),
    "coreml, native": ("coremltools",),
}


class Failure(Exception):
    """Ends the run with an exit code of ``runner/job.h``."""

    def __init__(self, code: int, message: object) -> None:
        super().__init__(str(message))
        self.code = code


def main(arguments: list[str]) -> int:
    """Do what the arguments say; return the exit code."""
    job = _parse(arguments)
    signal.alarm(job.limit)
    try:
        _run(job)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.code
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgesparse_device.child")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--input", nargs=3, action="append", default=[])
    parser.add_argument("--name", action="append", default=[])
    parser.add_argument("--native", action="store_true")
    return parser.parse_args(arguments)


def _run(job: argparse.Namespace) -> None:
    inputs = _read_inputs(job.input)
    prepare = _native_package if job.native else _package if job.model.is_dir() else _program
    load = prepare(job, inputs)
    base = _memory("VmRSS")
    _reset_peak()
    start = time.perf_counter()
    try:
        call = load()
    except (EdgesparseError, RuntimeError) as error:
        raise Failure(outcome.METHOD, error) from None
    result: dict[str, Any] = {"base_kib": base, "load_ms": _milliseconds_since(start)}
    outputs = _execute(call)
    for i, array in enumerate(outputs):
        _write(job.out / f"output-{i}.bin", array)
    for _ in range(job.warmup - 1):
        _execute(call)
    result["latency_ms"] = [_timed(call) for _ in range(job.runs)]
    result["peak_kib"] = _memory("VmHWM")
    result["outputs"] = [TensorSpec.of("", array).to_json() for array in outputs]
    (job.out / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _read_inputs(given: Sequence[Sequence[str]]) -> Arrays:
    inputs = []
    for dtype, shape, path in given:
        sizes = tuple(int(size) for size in shape.split("x") if size)
        try:
            inputs.append(read_raw(Path(path), TensorSpec(name="", dtype=dtype, shape=sizes)))
        except DeviceError as error:
            raise Failure(outcome.INPUT, error) from None
    return inputs


def preload(target: str) -> None:
    """Import a target's runtime, before any clock or memory is looked at."""
    for module in RUNTIMES[target]:
        importlib.import_module(module)


def _program(job: argparse.Namespace, inputs: Arrays) -> Callable[[], Call]:
    """Return what loads a ``.pte``."""
    import torch
    from edgesparse_converters.executorch.loading import load_program, register_kernels
    from edgesparse_converters.executorch.program import read_program

    try:
        register_kernels(read_program(job.model).operators)
    except EdgesparseError as error:
        raise Failure(outcome.PROGRAM, error) from None
    tensors = [torch.from_numpy(array.copy()) for array in inputs]

    def load() -> Call:
        method = load_program(job.model).load_method("forward")
        if method is None:
            raise Failure(outcome.METHOD, "there is no method forward")
        return lambda: [_array(value) for value in method.execute(tensors)]

    return load


def _package(job: argparse.Namespace, inputs: Arrays) -> Callable[[], Call]:
    """Return what loads a ``.mlpackage`` into the host executor."""
    from edgesparse_converters.coreml.execute import Executor

    named = dict(zip(job.name, inputs, strict=True))

    def load() -> Call:
        executor = Executor(job.model)
        return lambda: [np.asarray(array) for array in executor.run(named).values()]

    return load


def _native_package(job: argparse.Namespace, inputs: Arrays) -> Callable[[], Call]:
    """Return what loads a ``.mlpackage`` into a Mac's own Core ML."""
    import coremltools

    # Core ML takes no 64-bit integers; converters declare such inputs as int32.
    narrow = {"int64": np.int32, "bool": np.int32}
    named = {
        name: array.astype(narrow.get(array.dtype.name, array.dtype))
        for name, array in zip(job.name, inputs, strict=True)
    }

    def load() -> Call:
        model = coremltools.models.MLModel(str(job.model))
        order = [output.name for output in model.get_spec().description.output]

        def call() -> Arrays:
            outputs = model.predict(named)
            return [np.asarray(outputs[name]) for name in order]

        return call

    return load


def _array(value: object) -> NDArray[Any]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise Failure(outcome.OUTPUT, f"an output is a {type(value).__name__}, not a tensor")
    return value.numpy().copy()


def _execute(call: Call) -> Arrays:
    try:
        return call()
    except (EdgesparseError, RuntimeError) as error:
        raise Failure(outcome.EXECUTE, error) from None


def _timed(call: Call) -> float:
    start = time.perf_counter()
    _execute(call)
    return _milliseconds_since(start)


def _milliseconds_since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)


def _write(path: Path, array: NDArray[Any]) -> None:
    try:
        write_raw(path, array)
    except OSError as error:
        raise Failure(outcome.OUTPUT, f"{path}: {error.strerror}") from None


def _memory(field: str) -> int:
    """Return a field of this process's status in KiB, 0 where the system has none."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(field)), 0)


def _reset_peak() -> None:
    """Forget the peak that importing reached, so that VmHWM is the model's own."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
