"""What cutting whole parts costs and brings: perplexity, recovery, and speed on this host.

    python bench/structured.py cut MODEL -o FOLDER --calibration TEXT --text TEXT
    python bench/structured.py recover MODEL -o FOLDER --data TEXT --text TEXT
    python bench/structured.py speed MODEL -o FOLDER

The first leaves the cut model in FOLDER, the second trains it for some minutes with the whole model
as the teacher, the third times whole and cut in turns: a pass over 512 tokens in float32, and
tokens one by one on packed 4-bit weights. Each prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import edgesparse as es
from edgesparse.model import CapturedModel
from edgesparse.runtime.generate import stream
from edgesparse.structured import Cuts, heal, prune_structured, write_model

PROMPT = "It was a dark evening when"
ROUNDS, TOKENS = 5, 48


def perplexity(model: CapturedModel, options: argparse.Namespace) -> float:
    found = es.evaluate(model, text=options.text, max_windows=options.eval_windows).perplexity
    assert found is not None
    return round(found, 3)


def cut(options: argparse.Namespace) -> dict[str, Any]:
    whole = es.load(options.model)
    cuts = Cuts(channels=options.ffn, layers=options.layers)
    row: dict[str, Any] = {"whole": perplexity(whole, options)}
    for name, refit in (("cut only", False), ("cut and refitted", True)):
        small = prune_structured(whole, cuts, calibration=options.calibration, refit=refit)
        row[name] = perplexity(small, options)
    write_model(small, options.output / "cut", force=True)
    return {**row, "parameters": whole.num_parameters, "left": small.num_parameters}


def recover(options: argparse.Namespace) -> dict[str, Any]:
    whole, small = es.load(options.model), es.load(options.output / "cut")
    steps: list[int] = []
    healed = heal(
        small, whole, data=options.data, minutes=options.minutes, batch=options.batch,
        window=options.window, progress=lambda progress: steps.append(progress.step),
    )  # fmt: skip
    write_model(healed, options.output / "recovered", force=True)
    row = {"minutes": options.minutes, "steps": len(steps), "batch": options.batch}
    return {**row, "window": options.window, "recovered": perplexity(healed, options)}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    models = {"whole": es.load(options.model), "cut": es.load(options.output / "cut")}
    rule = es.Recipe((es.Rule(bits=4, group_size=32, quantizer="rtn"),))
    packed = {name: es.compress(model, es.plan(model, rule)) for name, model in models.items()}
    dense = {name: model.loader().float() for name, model in models.items()}
    tokens = torch.arange(512)[None]

    def prefill(name: str) -> None:
        with torch.inference_mode():
            dense[name](input_ids=tokens, use_cache=False)

    def decode(name: str) -> None:
        for _ in stream(packed[name], PROMPT, tokens=TOKENS, temperature=0):
            pass

    ratio = models["whole"].num_parameters / models["cut"].num_parameters
    row: dict[str, Any] = {"parameters": round(ratio, 3)}
    for name, run in (("512 tokens, float32", prefill), ("decoding, 4 bits", decode)):
        row[name] = round(speed_up(run), 3)
    return row


def speed_up(run: Callable[[str], None]) -> float:
    """Return how much faster the cut model is, the median of rounds taken in turns."""
    ratios = []
    for i in range(ROUNDS + 1):
        times = {}
        for name in ("whole", "cut"):
            began = time.perf_counter()
            run(name)
            times[name] = time.perf_counter() - began
        if i:  # the first warms up
            ratios.append(times["whole"] / times["cut"])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("cut", "recover", "speed"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ffn", type=float, default=0.25)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=512, help="of training")
    parser.add_argument("--eval-windows", type=int, default=60)
    options = parser.parse_args()
    stage = {"cut": cut, "recover": recover, "speed": speed}[options.stage]
    print(json.dumps(stage(options)))


if __name__ == "__main__":
    main()
