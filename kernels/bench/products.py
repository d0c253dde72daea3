"""Time products with packed weights against what else there is.

    python kernels/bench/products.py [--ggml ggml_product.so] [--threads 1] [--batch 1]

Contenders are interleaved in random order; a figure is the 25th percentile of the samples, and the
ratio is to the fastest Q4_0 of llama.cpp in the same rounds (to torch's int4 without it). Streamed
turns through enough copies that weights come from memory; cached multiplies by one. Quantizing
the activations is part of every time.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from contenders import Contender, csr, ggml, ours, torch_products
from edgesparse_kernels import _isa
from edgesparse_kernels.activations import Activations

STREAMED_NBYTES = 96 << 20  # three times the last-level cache it was written on


def collect(arguments: argparse.Namespace, shape: tuple[int, int]) -> list[Contender]:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32)
    x = rng.standard_normal((arguments.batch, shape[1])).astype(np.float32)
    threads = arguments.threads

    def copies(nbytes: int) -> int:
        return 1 if arguments.cached else -(-STREAMED_NBYTES // nbytes)

    found = list(ours(weights, x, copies, threads, Activations[arguments.activations.upper()]))
    if arguments.ggml:
        found += ggml(arguments.ggml, weights, x, copies, threads)
    if not arguments.ours_only:
        found += torch_products(weights, x, copies, threads)
        found += csr(weights, x, copies)
    return found


def measure(contenders: list[Contender], rounds: int) -> dict[str, float]:
    """Return the 25th percentile of each, in microseconds."""
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    turn = 0
    for _ in range(rounds):
        for contender in random.Random(turn).sample(contenders, len(contenders)):
            turn += 1
            samples[contender.name].append(_sample(contender.run, turn))
    return {name: float(np.percentile(times, 25)) for name, times in samples.items()}


def _sample(run: Callable[[int], None], turn: int) -> float:
    """Time about a millisecond of calls; return microseconds a call."""
    begin, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begin < 1e-3:
        run(turn + calls)
        calls += 1
    return 1e6 * (time.perf_counter() - begin) / calls


def bandwidth() -> float:
    """Return bytes per microsecond that one thread reads from memory."""
    block = np.ones(STREAMED_NBYTES // 8, np.int64)
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - begin)
    return float(block.nbytes / min(times) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml", type=Path, help="built from peers/ggml_product.cpp")
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--activations", default="int8", choices=["int8", "int16", "float32"])
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--ours-only", action="store_true", help="no torch and SciPy")
    arguments = parser.parse_args()
    rows, columns = (int(size) for size in arguments.shape.split("x"))
    contenders = collect(arguments, (rows, columns))
    times = measure(contenders, arguments.rounds)
    rivals = [name for name in times if name.startswith("llama.cpp q4_0")] or ["torch int4 g128"]
    base = min(times.get(name, float("nan")) for name in rivals)
    speed = bandwidth()
    where = "cached" if arguments.cached else "streamed"
    sys.stdout.write(
        f"{rows} x {columns}, {where}, batch {arguments.batch}, {arguments.threads} thread(s), "
        f"{arguments.activations} activations, {_isa.best().name}; "
        f"memory {speed / 1e3:.1f} GB/s\n\n"
        "| product | bits/weight | µs | × llama.cpp Q4_0 | of the memory bound | error |\n"
        "|---|---|---|---|---|---|\n"
    )
    for contender in contenders:
        spent = times[contender.name]
        bound = "" if arguments.cached else f"{100 * contender.nbytes / speed / spent:.0f} %"
        bits = 8 * contender.nbytes / (rows * columns)
        sys.stdout.write(
            f"| {contender.name} | {bits:.2f} | {spent:.0f} | {base / spent:.2f} | {bound} "
            f"| {contender.error:.1e} |\n"
        )


if __name__ == "__main__":
    main()
