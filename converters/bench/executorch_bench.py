"""Bytes, memory and speed of one language model as ExecuTorch programs, measured in one run.

    python converters/bench/executorch_bench.py MODEL --compressed DIR [--compressed DIR ...]
        [--context 256] [--cache int8] [--threads 1 2] [--steps 64] [--rounds 3]
        [--text FILE --windows 8] [--keep FOLDER]

MODEL is a Hugging Face directory, DIR what `edgesparse compress` made of it. Programs with a cache
are written: float32 through XNNPACK, 4-bit groups of 32 through XNNPACK (rounded to nearest: bytes
and speed do not depend on how codes were chosen), and each DIR as it is, its sparse layers on our
operators; with --cache int8 each DIR once more with such a cache. Every program runs in a process
of its own, in as many rounds over all of them; times are the median of the rounds' medians, and
"at best" that of their fastest tokens, which other work on the machine disturbs less.

Memory is counted from after the runtime is loaded: `peak` is the highest resident set, with the
code of the runtime that is touched, about 5 MB for all; `said` is what the file alone says
about it; `dirty` is what belongs to the process alone at the end, which no system can take back by
dropping pages of the file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from edgesparse_converters.executorch.memory import memory_of
from edgesparse_converters.executorch.program import read_program

import edgesparse as es
from edgesparse.exporting import export
from edgesparse.model import CompressedModel

HEAD = (
    "| program | threads | bytes | load ms | tokens/s | at best | peak MB | said | dirty MB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--compressed", type=Path, action="append", default=[])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--cache", choices=["int8"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = programs(arguments, folder)
        print(HEAD)
        for threads in arguments.threads:
            rounds = [
                [run(path, threads, arguments.steps) for _, path in found]
                for _ in range(arguments.rounds)
            ]
            for i, (name, path) in enumerate(found):
                print(row(name, path, threads, [one[i] for one in rounds]), flush=True)
        for name, path in found if arguments.text else ():
            print(f"{name}: perplexity {perplexity(path, arguments):.3f}", flush=True)


def programs(arguments: argparse.Namespace, folder: Path) -> list[tuple[str, Path]]:
    """Write what is not there yet and return (name, path) of each program."""
    wanted: list[tuple[str, Callable[[], CompressedModel], str, str]] = [
        ("float32", lambda: as_it_is(arguments.model), "xnnpack", "float32"),
        ("XNNPACK 4-bit g32", lambda: rounded(arguments.model), "xnnpack", "float32"),
    ]
    for small in arguments.compressed:
        load = partial(CompressedModel.load, small)
        wanted.append((small.name, load, "auto", "float32"))
        if arguments.cache:
            wanted.append((f"{small.name} {arguments.cache} cache", load, "auto", arguments.cache))
    found = []
    for name, model, lowering, cache in wanted:
        path = folder / f"{name.replace(' ', '-')}.pte"
        if not path.exists():
            export(
                model(), "executorch", path, lowering=lowering, activations="int8",
                context=arguments.context, cache=cache,
            )  # fmt: skip
        found.append((name, path))
    return found


def as_it_is(model: Path) -> CompressedModel:
    """Return the model with nothing packed."""
    captured = es.load(model)
    weights = captured.weights()
    kept = {tensor.name: weights[tensor.name] for tensor in captured.tensors}
    plan = es.plan(captured, recipe=es.Recipe(()))
    return CompressedModel(captured=captured, packed={}, plan=plan, kept=kept)


def rounded(model: Path) -> CompressedModel:
    """Return the model in 4 bits, groups of 32, rounded to nearest."""
    captured = es.load(model)
    rule = es.Rule(kind=None, bits=4, group_size=32, quantizer="rtn")
    plan = es.plan(captured, recipe=es.Recipe((rule,)))
    return es.compress(captured, plan, calibration=None)


def run(path: Path, threads: int, steps: int) -> dict[str, float]:
    """Measure a program in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path), str(threads), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, path: Path, threads: int, rounds: list[dict[str, float]]) -> str:
    middle = {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
    return (
        f"| {name} | {threads} | {path.stat().st_size:,} | {middle['load_ms']:.1f} | "
        f"{1e3 / middle['token_ms']:,.0f} | {1e3 / middle['fast_ms']:,.0f} | "
        f"{middle['peak'] / 1e6:.1f} | {memory_of(read_program(path), 'forward').peak / 1e6:.1f} | "
        f"{middle['dirty'] / 1e6:.1f} |"
    )


def measure(path: str, threads: str, steps: str) -> None:
    """Load a program in this process, generate, print one line of JSON."""
    from edgesparse_converters.executorch.loading import register_kernels
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    register_kernels(("edgesparse::linear", "quantized_decomposed::embedding"))
    portable_lib._unsafe_reset_threadpool(int(threads))
    Runtime.get()
    before = status()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    load_ms, times, after = speak(path, int(steps))
    result = {
        "load_ms": load_ms,
        "token_ms": float(np.median(times)),
        "fast_ms": min(times),
        "peak": after["VmHWM"] - before["VmRSS"],
        "dirty": after["RssAnon"] - before["RssAnon"],
    }
    print(json.dumps(result))


def speak(path: str, steps: int) -> tuple[float, list[float], dict[str, int]]:
    """Return ms of loading, ms of each token, and the memory while the program is there."""
    import torch
    from executorch.runtime import Runtime

    begin = time.perf_counter()
    forward = Runtime.get().load_program(Path(path)).load_method("forward")
    load_ms = 1e3 * (time.perf_counter() - begin)
    times = []
    for position in range(steps):
        inputs = [torch.tensor([[position % 7]]), torch.tensor([position])]
        begin = time.perf_counter()
        forward.execute(inputs)
        times.append(1e3 * (time.perf_counter() - begin))
    return load_ms, times, status()


def status() -> dict[str, int]:
    """Return the memory of this process in bytes, by the names Linux gives it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {field[0].rstrip(":"): 1024 * int(field[1]) for field in fields}


def perplexity(path: Path, arguments: argparse.Namespace) -> float:
    """Return the perplexity of windows of the text, every token through the runtime."""
    from edgesparse_converters.executorch.generation import score

    from edgesparse.runtime.text import tokenizer

    captured = es.load(arguments.model)
    tokens = tokenizer(captured).encode(arguments.text.read_text()).ids
    width = arguments.context
    windows = [tokens[i * width : (i + 1) * width] for i in range(arguments.windows)]
    return math.exp(score(path, windows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
