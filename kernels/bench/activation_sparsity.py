"""What skipping small activations costs and saves: perplexity and speed of the same thresholds.

    python kernels/bench/activation_sparsity.py COMPRESSED --calibration TEXT --validation TEXT

For every linear layer but the head one threshold is taken from calibration text, at which the
asked share of its activations is smaller (TEAL, 2408.14690, its uniform form: no training). Speed
is that of all those layers' products, one row each, their weights column by column, against the
same weights in tiles without skipping, as packed and as dense codes; weights lie where the caches
left them. Perplexity and
speed may be found one at a time (``--only``), speed on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.columns import by_column, multiplier
from torch import Tensor, nn

from edgesparse.formats.operand import open_matrix
from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS
from edgesparse.pattern import DENSE
from edgesparse.runtime.modules import build_decoded
from edgesparse.runtime.text import token_windows


def layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    }


@contextmanager
def hooked(module: nn.Module, hook: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Let ``hook`` see, and replace, what enters every layer."""
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: hook(name, inputs[0]))
        for name, layer in layers(module).items()
    ]
    yield
    for handle in handles:
        handle.remove()


def sample(module: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """Return what entered each layer, tokens by features."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Tensor) -> None:
        seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))

    with hooked(module, keep), torch.inference_mode():
        for window in windows:
            module(window[None])
    return {name: torch.cat(parts) for name, parts in seen.items()}


def perplexity(module: nn.Module, windows: Tensor, thresholds: dict[str, float]) -> float:
    def cut(name: str, x: Tensor) -> Tensor:
        return torch.where(x.abs() < thresholds[name], 0, x)

    losses = []
    with hooked(module, cut), torch.inference_mode():
        for window in windows:
            logits = module(window[None]).logits[0, :-1]
            losses.append(nn.functional.cross_entropy(logits, window[1:]).item())
    return float(np.exp(np.mean(losses)))


def seconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median time of each, interleaved in random order."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in random.Random(turn).sample(sorted(runs), len(runs)):
            begin = time.perf_counter()
            runs[name]()
            spent[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=60, help="of validation text")
    parser.add_argument("--levels", default="0,0.25,0.4,0.5,0.6,0.75")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", choices=["perplexity", "speed"], help="the other as found before")
    parser.add_argument("--output", type=Path, default=Path("out/bench/skipping.json"))
    arguments = parser.parse_args()
    compressed = CompressedModel.load(arguments.model)
    module = build_decoded(compressed)

    def windows(path: Path, count: int) -> Tensor:
        text = path.read_text(encoding="utf-8")
        return token_windows(compressed.captured, text, window=arguments.window, name=path.name)[
            :count
        ]

    seen = sample(module, windows(arguments.calibration, 8))
    levels = {level: cuts(seen, float(level)) for level in arguments.levels.split(",")}
    found = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    if arguments.only != "speed":
        validation = windows(arguments.validation, arguments.windows)
        found["perplexity"] = {
            level: perplexity(module, validation, thresholds)
            for level, thresholds in levels.items()
        }
    if arguments.only != "perplexity":
        runs = {level: by_columns(compressed, seen, each) for level, each in levels.items()}
        tiles = {
            "tiles": in_tiles(compressed, seen, None),
            "dense": in_tiles(compressed, seen, "dense4"),
        }
        found["seconds"] = seconds({**runs, **tiles}, arguments.rounds)
        found["kept"] = {level: kept(seen, thresholds) for level, thresholds in levels.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1))
    if {"perplexity", "seconds"} <= set(found):
        sys.stdout.write(table(found))


def cuts(seen: dict[str, Tensor], level: float) -> dict[str, float]:
    """Return for each layer the magnitude below which this share of its activations is."""
    if not level:
        return dict.fromkeys(seen, 0.0)
    return {name: float(np.quantile(x.abs().numpy(), level)) for name, x in seen.items()}


def kept(seen: dict[str, Tensor], thresholds: dict[str, float]) -> float:
    shares = [(x.abs() >= thresholds[name]).float().mean().item() for name, x in seen.items()]
    return statistics.mean(shares)


def table(found: dict[str, dict[str, float]]) -> str:
    """Return what skipping costs and saves, a line for each level."""
    times = found["seconds"]
    lines = [
        "| activations kept | perplexity | products of a token, µs | × all columns "
        "| × tiles as packed | × dense tiles |",
        "|---|---|---|---|---|---|",
    ]
    kept_all = {"tiles": "all, in tiles as packed", "dense": "all, in dense tiles"}
    shares = {level: f"{100 * share:.0f} %" for level, share in found["kept"].items()}
    for level, name in {**kept_all, **shares}.items():
        value, one = found["perplexity"].get(level, found["perplexity"]["0"]), times[level]
        lines.append(
            f"| {name} | {value:.2f} | {1e6 * one:.0f} | {times['0'] / one:.2f} "
            f"| {times['tiles'] / one:.2f} | {times['dense'] / one:.2f} |"
        )
    return "\n".join(lines) + "\n"


def by_columns(
    compressed: CompressedModel, seen: dict[str, Tensor], thresholds: dict[str, float]
) -> Callable[[], None]:
    """Return one pass over the layers' products, small activations skipped."""
    calls = []
    for name, x in seen.items():
        matrix = by_column(open_matrix(compressed.packed[f"{name}.weight"]))
        row = x[len(x) // 2].numpy()
        row = np.where(np.abs(row) < np.float32(thresholds[name]), np.float32(0), row)
        calls.append(multiplier(matrix, row))

    def run() -> None:
        for call in calls:
            call()

    run()
    return run


def in_tiles(
    compressed: CompressedModel, seen: dict[str, Tensor], layout: str | None
) -> Callable[[], None]:
    """Return one pass over the layers' products by int8 activations, as packed or in a layout."""
    calls = []
    for name, x in seen.items():
        packed = compressed.packed[f"{name}.weight"]
        if layout:
            packed = FORMATS.get(layout).pack(packed.codes, pattern=DENSE)
        matrix = open_matrix(packed)
        row = np.ascontiguousarray(x[len(x) // 2][None].numpy())
        calls.append((matrix, row, np.empty((1, matrix.rows), np.float32)))

    def run() -> None:
        for matrix, row, out in calls:
            kernels.matmul(row, matrix, out=out, kind=Activations.INT8)

    run()
    return run


if __name__ == "__main__":
    main()
