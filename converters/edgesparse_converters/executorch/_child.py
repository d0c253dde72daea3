"""The process that runs a program, a folder with its inputs given; results are written beside them.

``run PATH METHOD FOLDER CALLS``      in{i}.npz -> out{i}.npz
``profile PATH METHOD FOLDER RUNS``   in0.npz -> events.etdp
``time PATH METHOD FOLDER RUNS THREADS``   in0.npz -> times.npy, ms: loading, then each run
``pace FOLDER COUNT NBYTES``          {i}.pte -> times.npy, ns: one run of each, weights from memory
``speak PATH``                        tokens on stdin -> logits on stdout; see ``speaking``
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgesparse_converters.executorch.loading import load_program, register_kernels
from edgesparse_converters.executorch.program import read_program

if TYPE_CHECKING:
    from executorch.runtime import Program


# Over all copies of a program that is timed: a few tenths of a second, for the one least disturbed.
_PASSES = 20


def run(path: str, method: str, folder: str, calls: str) -> None:
    """Run the method once per input file."""
    loaded = load_program(Path(path)).load_method(method)
    for i in range(int(calls)):
        with np.load(Path(folder) / f"in{i}.npz", allow_pickle=False) as stored:
            inputs = [torch.from_numpy(stored[key]) for key in stored.files]
        outputs = loaded.execute(inputs)
        np.savez(Path(folder) / f"out{i}.npz", *[_array(value) for value in outputs])


def profile(path: str, method: str, folder: str, runs: str) -> None:
    """Run the method and write the runtime's events."""
    program = load_program(Path(path), trace=True)
    loaded = program.load_method(method)
    with np.load(Path(folder) / "in0.npz", allow_pickle=False) as stored:
        inputs = [torch.from_numpy(stored[key]) for key in stored.files]
    for _ in range(int(runs)):
        loaded.execute(inputs)
    events, buffers = (str(Path(folder) / name) for name in ("events.etdp", "buffers.bin"))
    program.write_etdump_result_to_file(events, buffers)


def time_runs(path: str, method: str, folder: str, runs: str, threads: str) -> None:
    """Time loading the program and running the method."""
    from executorch.extension.pybindings import portable_lib

    if int(threads):
        portable_lib._unsafe_reset_threadpool(int(threads))
    with np.load(Path(folder) / "in0.npz", allow_pickle=False) as stored:
        inputs = [torch.from_numpy(stored[key]) for key in stored.files]
    register_kernels(read_program(Path(path)).operators)
    moments = [time.perf_counter()]
    loaded = load_program(Path(path)).load_method(method)
    moments.append(time.perf_counter())
    loaded.execute(inputs)  # the first touches every page; it does not count
    times = []
    for _ in range(int(runs)):
        began = time.perf_counter()
        loaded.execute(inputs)
        times.append(time.perf_counter() - began)
    np.save(Path(folder) / "times.npy", 1e3 * np.array([moments[1] - moments[0], *times]))


def pace(folder: str, count: str, nbytes: str) -> None:
    """Time one run of each program, on one thread and with weights that are in no cache."""
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(1)
    paths = [Path(folder) / f"{i}.pte" for i in range(int(count))]
    np.save(Path(folder) / "times.npy", [_streamed_ns(path, int(nbytes)) for path in paths])


def _streamed_ns(path: Path, nbytes: int) -> float:
    """Return the time of one run, taken over copies of the file that are ``nbytes`` together.

    What the runtime repacks it repacks for each, so that every run reads weights of its own.
    """
    count = max(2, -(-nbytes // path.stat().st_size))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copies = [Path(shutil.copyfile(path, Path(folder) / f"{i}.pte")) for i in range(count)]
        methods = [load_program(copy).load_method("forward") for copy in copies]
        inputs = [torch.ones(methods[0].metadata.input_tensor_meta(0).sizes())]
        passes = []
        for _ in range(_PASSES):
            began = time.process_time_ns()  # not what other processes take in between
            for method in methods:
                method.execute(inputs)
            passes.append(time.process_time_ns() - began)
    return min(passes[1:]) / count  # the first touches every page; it does not count


def speak(path: str) -> None:
    """Read tokens as they come and answer with their logits."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not mix with the answers
    program = load_program(Path(path))
    reader = Cached(program) if "prefill" in program.method_names else Whole(program)
    while head := sys.stdin.buffer.read(8):
        count = int(np.frombuffer(head, np.int64)[0])
        if count == 0:
            reader.reset()
            continue
        tokens = np.frombuffer(sys.stdin.buffer.read(8 * count), np.int64)
        answers.write(reader.read(tokens).astype(np.float32).tobytes())
        answers.flush()


class Cached:
    """Reads through ``prefill`` as far as whole calls fit into the context, else one by one."""

    def __init__(self, program: Program) -> None:
        self._prefill, self._forward = (
            program.load_method("prefill"),
            program.load_method("forward"),
        )
        self._width = self._prefill.metadata.input_tensor_meta(0).sizes()[1]
        self._context = int(program.load_method("get_max_context_len").execute([])[0])
        self._position = 0

    def reset(self) -> None:
        """Begin again; what the cache holds is overwritten before it is attended to."""
        self._position = 0

    def read(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits [T, V] of the next tokens."""
        rows = []
        while len(tokens):
            fits = self._position + self._width <= self._context and len(tokens) > 1
            method, width = (self._prefill, self._width) if fits else (self._forward, 1)
            part = tokens[:width]
            padded = torch.from_numpy(np.pad(part, (0, width - len(part))))[None]
            logits = method.execute([padded, torch.tensor([self._position])])[0]
            rows.append(logits[0, : len(part)].numpy().copy())
            self._position += len(part)
            tokens = tokens[width:]
        return np.concatenate(rows)


class Whole:
    """Reads all tokens again for every call; the program takes a fixed number of them."""

    def __init__(self, program: Program) -> None:
        self._forward = program.load_method("forward")
        self._length = self._forward.metadata.input_tensor_meta(0).sizes()[1]
        self._tokens = np.zeros(0, np.int64)

    def reset(self) -> None:
        """Begin again."""
        self._tokens = self._tokens[:0]

    def read(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits [T, V] of the next tokens; what follows them is of no matter."""
        before = len(self._tokens)
        self._tokens = np.concatenate([self._tokens, tokens])
        padded = np.pad(self._tokens, (0, self._length - len(self._tokens)))
        logits = self._forward.execute([torch.from_numpy(padded)[None]])[0]
        rows: NDArray[np.float32] = logits[0, before : len(self._tokens)].numpy().copy()
        return rows


def _array(value: object) -> NDArray[Any]:
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "profile": profile,
    "time": time_runs,
    "pace": pace,
    "speak": speak,
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
