"""Time products with packed weights against what else there is.

    python kernels/bench/products.py [--ggml ggml_product.so] [--threads 1] [--batch 1]

Contenders are interleaved in random order; a figure is the 25th percentile of the samples, and the
ratio is to the fastest Q4_0 of llama.cpp in the same rounds (to torch's int4 without it). Streamed
turns through enough copies that weights come from memory; cached multiplies by one. Quantizing
the activations is part of every time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Contender, csr, ggml, ours, skipping, torch_csr, torch_products
from edgesparse_kernels import _isa
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.held import cache_nbytes
from xnnpack import xnnpack


def streamed_nbytes() -> int:
    """Return how many bytes of copies cannot stay in the last-level cache: twice its size."""
    return max(96 << 20, 2 * cache_nbytes(3))


STREAMED_NBYTES = streamed_nbytes()


def collect(arguments: argparse.Namespace, shape: tuple[int, int]) -> list[Contender]:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float32)
    x = rng.standard_normal((arguments.batch, shape[1])).astype(np.float32)
    threads = arguments.threads

    def copies(nbytes: int) -> int:
        return 1 if arguments.cached else -(-STREAMED_NBYTES // nbytes)

    found = list(ours(weights, x, copies, threads, Activations[arguments.activations.upper()]))
    if arguments.batch == threads == 1 and arguments.activations == "int8":
        found += skipping(weights, x, copies)
    if arguments.ggml:
        found += ggml(arguments.ggml, weights, x, copies, threads)
    if not arguments.ours_only:
        found += torch_products(weights, x, copies, threads)
        found += csr(weights, x, copies)
        found += torch_csr(weights, x, copies, threads)
        found += xnnpack(weights, x, copies, threads)
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


def bandwidth(threads: int) -> float:
    """Return bytes per microsecond that so many threads read from memory together."""
    blocks = np.ones((threads, STREAMED_NBYTES // 8), np.int64)
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(7):
            begin = time.perf_counter()
            list(pool.map(np.sum, blocks))
            times.append(time.perf_counter() - begin)
    return float(blocks.nbytes / min(times) / 1e6)


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
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    found = measured(arguments)
    sys.stdout.write(json.dumps(found) if arguments.json else f"{title(found)}\n\n{rows(found)}")


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what one run found, as JSON values; times in microseconds."""
    rows, columns = (int(size) for size in arguments.shape.split("x"))
    contenders = collect(arguments, (rows, columns))
    times = measure(contenders, arguments.rounds)
    return {
        "shape": arguments.shape,
        "cached": arguments.cached,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "activations": arguments.activations,
        "isa": _isa.best().name,
        "bytes_per_us": bandwidth(arguments.threads),
        "products": [
            {
                "name": contender.name,
                "us": times[contender.name],
                "bits": 8 * contender.nbytes / (rows * columns),
                "nbytes": contender.nbytes,
                "error": contender.error,
            }
            for contender in contenders
        ],
    }


def title(found: Mapping[str, Any]) -> str:
    """Return what was measured in a line."""
    where = "in cache" if found["cached"] else "streamed"
    return (
        f"{found['shape']}, {where}, batch {found['batch']}, {found['threads']} thread(s), "
        f"{found['activations']} activations, {found['isa']}; memory "
        f"{found['bytes_per_us'] / 1e3:.1f} GB/s"
    )


def rows(found: Mapping[str, Any]) -> str:
    """Return a table of the products, ratios to llama.cpp's fastest Q4_0, else torch's int4."""
    products = found["products"]
    rivals = [one for one in products if one["name"].startswith("llama.cpp q4_0")]
    rival = "llama.cpp Q4_0" if rivals else "torch int4"
    rivals = rivals or [one for one in products if one["name"] == "torch int4 g128"]
    base = min((one["us"] for one in rivals), default=float("nan"))
    lines = [
        f"| product | bits/weight | µs | × {rival} | of the memory bound | error |",
        "|---|---|---|---|---|---|",
    ]
    for one in products:
        share = one["nbytes"] / found["bytes_per_us"] / one["us"]
        bound = "" if found["cached"] else f"{100 * share:.0f} %"
        error = "" if one["error"] != one["error"] else f"{one['error']:.1e}"
        lines.append(
            f"| {one['name']} | {one['bits']:.2f} | {one['us']:.0f} | {base / one['us']:.2f} "
            f"| {bound} | {error} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
