"""Accuracy of every method and pattern on one language model, and of other tools' results on it.

    python bench/accuracy.py MODEL --calibration TEXT --validation TEXT [--held-out TEXT]
        [--training TEXT] [--rows REGEX] [--seeds 0 1] [--device cuda] [--peers DIR]
        [--output docs/accuracy.json]

Compressed are the linear layers of the blocks; embeddings (and heads tied to them) stay float16.
Calibration is 256 windows of 512 tokens, ``--seeds`` says which; perplexity is over all windows of
512 tokens of a text without overlap, 511 predictions each. With ``--training`` rows that have a
recovery go on with it, from the first seed. ``--held-out`` is a text that settings may be chosen
on; the validation text is only ever reported. ``--peers`` scores what scripts in ``bench/peers``
left in a directory. Results are added to the output after every row; ``accuracy_table.py`` makes
the page of it.
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
from pathlib import Path

import torch
from accuracy_cases import BATCH, ROWS, STEPS, Row, peer_case
from safetensors.torch import load_file
from torch import Tensor, nn

import edgesparse as es
from edgesparse.calibrate.windows import read_tokens
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.recovery import recover
from edgesparse.runtime.modules import build_decoded

WINDOWS, WINDOW = 256, 512


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


class Judge:
    """Measures models on the texts, as ratios to the dense model."""

    def __init__(self, captured: CapturedModel, texts: dict[str, Path], device: str) -> None:
        self._device, self._texts = device, {}
        for name, path in texts.items():
            tokens = read_tokens(captured, path)
            self._texts[name] = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)
        dense = captured.loader().float()
        self.dense = {n: perplexity(dense, w, device) for n, w in self._texts.items()}

    def ratios(self, model: nn.Module) -> dict[str, float]:
        """Return perplexity relative to the dense model's, by text."""
        return {
            name: perplexity(model, windows, self._device) / self.dense[name]
            for name, windows in self._texts.items()
        }

    def about(self) -> dict[str, object]:
        """Return what the dense model reaches."""
        windows = {name: len(windows) for name, windows in self._texts.items()}
        return {"dense_perplexity": self.dense, "windows": windows}


def measure(args: argparse.Namespace, captured: CapturedModel, judge: Judge) -> Iterator[dict]:
    """Yield a record for every row and seed chosen."""
    calibration = read_tokens(captured, args.calibration)
    training = None if args.training is None else read_tokens(captured, args.training)
    for row in ROWS:
        if not re.search(args.rows, f"{row.case}, {row.how}"):
            continue
        for seed in args.seeds:
            start = time.perf_counter()
            small = es.compress(
                captured, row.plan(captured), calibration, windows=args.windows,
                device=args.device, seed=seed,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            found = record(row, small, judge, seed=seed, seconds=seconds, bar=row.bar)
            yield found if args.windows == WINDOWS else {**found, "windows": args.windows}
            if training is not None and row.recovery is not None and seed == args.seeds[0]:
                yield recovered(row, small, training, judge, args.device)


def recovered(
    row: Row, small: CompressedModel, training: Tensor, judge: Judge, device: str
) -> dict[str, object]:
    """Recover a compressed model and return its record."""
    assert row.recovery is not None
    start, options = time.perf_counter(), vars(row.recovery).copy()
    bar = options.pop("bar")
    small = recover(small, data=training, steps=STEPS, batch=BATCH, device=device, **options)
    seconds = time.perf_counter() - start
    found = record(row, small, judge, seed=0, seconds=seconds, bar=bar)
    return {**found, "case": f"{row.case}, recovered", "options": options}


def record(
    row: Row, small: CompressedModel, judge: Judge, *, seed: int, seconds: float, bar: float | None
) -> dict[str, object]:
    """Return what is worth keeping of one result."""
    return {
        "tool": "edgesparse",
        "case": row.case,
        "how": row.how,
        "seed": seed,
        "ratio": judge.ratios(build_decoded(small)),
        "bar": bar,
        "seconds": round(seconds, 1),
        "bits_per_weight": small.bits_per_weight,
    }


def peers(folder: Path, captured: CapturedModel, judge: Judge) -> Iterator[dict[str, object]]:
    """Yield a record for every result that another tool left in ``folder``."""
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        model = captured.loader().float()
        weights = load_file(path.with_suffix(".safetensors"))
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
        case, how = peer_case(told["case"])
        yield {
            "tool": told["peer"], "version": told["version"], "case": case, "how": how, "seed": 0,
            "ratio": judge.ratios(model), "bar": None, "seconds": told["seconds"],
        }  # fmt: skip


def add(path: Path, about: dict[str, object], found: dict[str, object]) -> None:
    """Put one record into the file, in the place of an older one of the same run."""
    data = json.loads(path.read_text()) if path.exists() else {"rows": []}
    key = ("tool", "case", "how", "seed")
    rows = [r for r in data["rows"] if any(r[k] != found[k] for k in key)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**data, **about, "rows": [*rows, found]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--training", type=Path)
    parser.add_argument("--rows", default="", help="a regular expression of `case, method`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--windows", type=int, default=WINDOWS, help="of calibration")
    parser.add_argument("--peers", type=Path, help="score these results instead of running rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("docs/accuracy.json"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    captured = es.load(args.model)
    texts = {"validation": args.validation, "held-out": args.held_out}
    judge = Judge(captured, {n: p for n, p in texts.items() if p is not None}, args.device)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    about = {"model": captured.name, "device": machine, "torch": torch.__version__}
    results = (
        measure(args, captured, judge) if args.peers is None else peers(args.peers, captured, judge)
    )
    for found in results:
        print(json.dumps(found), flush=True)
        add(args.output, {**about, **judge.about()}, found)


if __name__ == "__main__":
    main()
