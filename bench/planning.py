"""Is the planned model better than every uniform recipe of the same bytes?

    python bench/planning.py MODEL --calibration TEXT --text TEXT [--device cuda] [-o OUT.json]

Every uniform recipe is compressed and measured once; at every budget the plan, with measured
sensitivities and without, is set against the best uniform recipe that fits. The correlation of
predicted loss with the measured KL divergence over all models is printed last.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgesparse as es
from edgesparse.compression import compress
from edgesparse.model import TensorKind
from edgesparse.planner.default import default_recipe
from edgesparse.planner.rates import Rates
from edgesparse.planner.sensitivity import measure_sensitivity
from edgesparse.runtime.forward import logits
from edgesparse.runtime.modules import build_decoded
from edgesparse.runtime.score import Tally
from edgesparse.runtime.text import read_text, token_windows

BUDGETS = ("40MB", "20MB", "14MB", "11MB", "8MB")


def uniform_recipes(method: str) -> Iterator[tuple[str, es.Recipe]]:
    for embedding in (8, 4):
        first = es.Rule(kind=TensorKind.EMBEDDING, bits=embedding, group_size=32, quantizer="rtn")
        for bits, group_size in ((8, 128), (4, 32), (4, 128), (3, 32), (3, 128), (2, 32), (2, 128)):
            rule = es.Rule(bits=bits, group_size=group_size)
            name = f"dense {bits}-bit g{group_size}, {embedding}-bit embedding"
            yield name, es.Recipe((first, rule))
        for text in ("unstructured", "2:4"):
            pattern = es.Pattern.parse(text, sparsity=0.5)
            rule = es.Rule(bits=4, group_size=128, pattern=pattern, method=method)
            name = f"50 % {text} + 4-bit g128, {embedding}-bit embedding"
            yield name, es.Recipe((first, rule))


class Bench:
    """One model, its calibration and its validation windows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.captured = es.load(options.model)
        self.options = options
        self.windows = token_windows(
            self.captured, read_text(options.text), window=512, name=options.text
        )[: options.eval_windows]
        self.dense = self.captured.loader().float().to(options.device)
        self.rows: list[dict[str, Any]] = []

    def measure(self, name: str, plan: es.Plan, sensitivity: Mapping[str, Rates]) -> dict[str, Any]:
        """Compress by ``plan`` and return its bytes, perplexity, KL and predicted losses."""
        started, options = time.monotonic(), self.options
        compressed = compress(
            self.captured, plan, options.calibration, windows=options.windows, device=options.device
        )
        module = build_decoded(compressed).to(options.device)
        tally = Tally()
        for tokens in self.windows.to(options.device):
            own, dense = (logits(m, self.captured, tokens[None])[0] for m in (module, self.dense))
            tally.add(tokens, own, dense)
        row = {
            "name": name,
            "nbytes": plan.nbytes,
            "predicted": sum(sensitivity[e.tensor.name].loss(e.spec) for e in plan.tensors
                             if e.tensor.name in sensitivity),
            "predicted_alike": sum(e.tensor.numel * Rates(rounding=1.0, pruning=1.0).loss(e.spec)
                                   for e in plan.tensors) / self.captured.num_parameters,
            **tally.means(compared=True),
            "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        options.output.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--eval-windows", type=int, default=60)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--method", default="admm")
    parser.add_argument("-o", "--output", type=Path, default=Path("planning.json"))
    bench = Bench(parser.parse_args())
    options, captured = bench.options, bench.captured
    sensitivity = measure_sensitivity(
        captured, options.calibration, windows=8, device=options.device
    )
    planned = {}
    for budget in options.budgets:
        for label, rates in (("planned", sensitivity), ("planned, alike", {})):
            recipe = default_recipe()
            plan = es.plan(captured, recipe, budget=es.Budget(file=budget), sensitivity=rates)
            planned[label, budget] = bench.measure(f"{label} {budget}", plan, sensitivity)
    uniform = [
        bench.measure(name, es.plan(captured, recipe), sensitivity)
        for name, recipe in uniform_recipes(options.method)
    ]
    report(options.budgets, planned, uniform, bench.rows)


def report(
    budgets: list[str],
    planned: Mapping[tuple[str, str], Mapping[str, Any]],
    uniform: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    """Print the table by budget and the correlation over all models."""
    print("| budget | planned | without sensitivities | best uniform that fits | |")
    print("|---|---|---|---|---|")
    for budget in budgets:
        fits = [row for row in uniform if row["nbytes"] <= es.Budget(file=budget).file]
        best = min(fits, key=lambda row: row["perplexity"], default=None)
        name = best["name"] if best else "none fits"
        print(
            f"| {budget} | {planned['planned', budget]['perplexity']:.3f} "
            f"| {planned['planned, alike', budget]['perplexity']:.3f} "
            f"| {best['perplexity'] if best else float('nan'):.3f} | {name} |"
        )
    measured = np.log([max(row["kl"], 1e-9) for row in rows])
    for key in ("predicted", "predicted_alike"):
        guess = np.log([max(row[key], 1e-9) for row in rows])
        print(f"correlation of log {key} with log KL: {np.corrcoef(guess, measured)[0, 1]:.4f}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
