"""One table of accuracy: every method and pattern on one language model, one text, one scale.

    python bench/accuracy.py MODEL --calibration TEXT --validation TEXT [--training TEXT]
        [--rows REGEX] [--device cuda] [--output docs/accuracy]

Compressed are the linear layers of the blocks; embeddings (and heads tied to them) stay float16.
Calibration is 256 windows of 512 tokens; perplexity is over all windows of 512 tokens of the
validation text without overlap, 511 predictions each. Rows named ``… distilled`` go on with
``recover`` on the training text. Results are written after every row, so that a run can be ended.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import edgesparse as es
from edgesparse.calibrate.windows import read_tokens
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.recovery import recover
from edgesparse.runtime.modules import build_decoded

WINDOWS, WINDOW = 256, 512
LEARNING_RATE, STEPS, BATCH = 8e-4, 1200, 32


@dataclass(frozen=True)
class Row:
    """One case; ``bar`` is the highest acceptable ratio to the dense model's perplexity."""

    pattern: str
    sparsity: float
    method: str
    bits: int = 16
    group: int = 128
    quantizer: str = "gptq"
    bar: float = math.nan
    distilled: float = math.nan

    @property
    def name(self) -> str:
        """Return what the table calls it."""
        kept = "dense" if self.sparsity == 0 else f"{self.pattern} {self.sparsity:.0%}"
        stored = "float16" if self.bits == 16 else f"{self.bits}-bit g{self.group}"
        how = self.method if self.sparsity else ""
        how += f"{' ' if how else ''}{self.quantizer}" if self.bits < 16 else ""
        return f"{kept}, {stored}, {how}".replace("unstructured ", "")


ROWS = [
    Row("unstructured", 0.5, "magnitude"),
    Row("unstructured", 0.5, "wanda", bar=1.29),
    Row("unstructured", 0.5, "sparsegpt", bar=1.21),
    Row("unstructured", 0.5, "sparsegpt", 4, 128, bar=1.23),
    Row("unstructured", 0.0, "", 4, 32, bar=1.012),
    Row("unstructured", 0.0, "", 3, 128, bar=1.065),
    Row("unstructured", 0.5, "admm", bar=1.13),
    Row("unstructured", 0.6, "admm", bar=1.38),
    Row("unstructured", 0.7, "admm", bar=2.3),
    Row("2:4", 0.5, "admm", bar=1.40),
    Row("unstructured", 0.5, "wanda", 4, 128),
    Row("unstructured", 0.5, "admm", 4, 128, bar=1.155, distilled=0.99),
    Row("16x1", 0.5, "admm", 4, 128, distilled=1.05),
    Row("2:4", 0.5, "admm", 4, 128, distilled=1.00),
    Row("unstructured", 0.7, "admm", 4, 128, distilled=1.03),
    Row("16:64", 0.75, "admm", 4, 128, distilled=1.06),
]


def plan_of(captured: CapturedModel, row: Row) -> es.Plan:
    """Return the plan that does the same to every linear layer."""
    pattern = es.Pattern.parse(row.pattern, sparsity=row.sparsity)
    rule = es.Rule(
        kind=TensorKind.LINEAR,
        pattern=pattern,
        method=row.method or "magnitude",
        bits=row.bits,
        group_size=row.group,
        quantizer=row.quantizer,
    )
    return es.plan(captured, es.Recipe((rule,)))


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor, device: str) -> float:
    """Return exp of the mean negative log-likelihood of every token but a window's first."""
    model, total = model.to(device), 0.0
    for batch in torch.split(windows, 8):
        tokens = batch.to(device)
        logits = model(input_ids=tokens).logits[:, :-1].float().flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
        total += float(loss)
    return math.exp(total / (len(windows) * (windows.shape[1] - 1)))


def measure(args: argparse.Namespace, captured: CapturedModel) -> Iterator[dict[str, object]]:
    """Yield a record for the dense model and for every row chosen."""
    tokens = read_tokens(captured, args.validation)
    windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)[: args.limit]
    calibration = read_tokens(captured, args.calibration)
    training = None if args.training is None else read_tokens(captured, args.training)
    dense = perplexity(captured.loader().float(), windows, args.device)
    yield {"name": "dense, float16", "perplexity": dense, "ratio": 1.0, "windows": len(windows)}

    def record(name: str, small: CompressedModel, bar: float, seconds: float) -> dict[str, object]:
        found = perplexity(build_decoded(small), windows, args.device)
        return {
            "name": name,
            "perplexity": found,
            "ratio": found / dense,
            "bar": None if math.isnan(bar) else bar,
            "seconds": round(seconds, 1),
            "bits_per_weight": small.bits_per_weight,
            "layer_error": sum(small.errors.values()) or None,
        }

    for row in ROWS:
        if not re.search(args.rows, row.name):
            continue
        start = time.perf_counter()
        small = es.compress(
            captured, plan_of(captured, row), calibration, windows=WINDOWS, device=args.device
        )
        yield record(row.name, small, row.bar, time.perf_counter() - start)
        if training is not None and not math.isnan(row.distilled):
            start = time.perf_counter()
            small = recover(
                small,
                data=training,
                steps=STEPS,
                minutes=args.minutes,
                lr=LEARNING_RATE,
                batch=BATCH,
                device=args.device,
            )
            spent = time.perf_counter() - start
            steps = small.metadata["recovery"]["steps"]
            name = f"{row.name}, distilled"
            yield {**record(name, small, row.distilled, spent), "steps": steps}


def as_markdown(records: list[dict[str, object]], title: str) -> str:
    """Return the table that goes into the documentation."""
    lines = [f"# Accuracy: {title}", ""]
    lines += ["| case | perplexity | × dense | bar | seconds |", "|---|---|---|---|---|"]
    for r in records:
        bar = "" if r.get("bar") is None else f"{r['bar']:.3f}"
        seconds = "" if r.get("seconds") is None else f"{r['seconds']}"
        line = f"| {r['name']} | {r['perplexity']:.3f} | {r['ratio']:.4f} | {bar} | {seconds} |"
        lines.append(line)
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--training", type=Path)
    parser.add_argument("--minutes", type=float, help="at most, for each distillation")
    parser.add_argument("--rows", default="", help="a regular expression of row names")
    parser.add_argument("--limit", type=int, help="validation windows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("docs/accuracy"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    captured, records = es.load(args.model), []
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    for record in measure(args, captured):
        records.append(record)
        print(json.dumps(record), flush=True)
        about = {"model": captured.name, "device": machine, "torch": torch.__version__}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.with_suffix(".json").write_text(
            json.dumps({**about, "rows": records}, indent=1)
        )
        args.output.with_suffix(".md").write_text(
            as_markdown(records, f"{captured.name}, {machine}")
        )


if __name__ == "__main__":
    main()
