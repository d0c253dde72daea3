"""What cutting whole parts costs and brings: perplexity, recovery, and speed on this host.

    python bench/structured.py cut MODEL -o FOLDER --calibration TEXT
    python bench/structured.py recover MODEL -o FOLDER --data TEXT [--steps N]
    python bench/structured.py score MODEL -o FOLDER --text TEXT [--only NAME]
    python bench/structured.py speed MODEL -o FOLDER [--only CASE]
    python bench/structured.py table MODEL -o FOLDER
    python bench/structured.py experts MODEL -o FOLDER --calibration TEXT --text TEXT

``cut`` leaves two models in FOLDER, one only cut and one refitted; ``recover`` trains the second
with the whole model as the teacher; ``score`` measures what is there; ``speed`` times whole and cut
in turns, which wants a quiet machine. What each stage found is kept in FOLDER/results.json, of
which ``table`` makes the table of ``docs/structured.md``. ``experts`` drops and merges experts of a
mixture, and sends tokens to one, without training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import edgesparse as es
from edgesparse.model import CapturedModel
from edgesparse.runtime.generate import stream
from edgesparse.structured import Cuts, heal, prune_structured, write_model

PROMPT = "It was a dark evening when"
ROUNDS, TOKENS = 7, 64
WORDS = {
    "whole": "before",
    "plain": "cut",
    "cut": "cut, readers refitted",
    "recovered": "recovered",
}
Results = dict[str, dict[str, Any]]


def cut(options: argparse.Namespace) -> Results:
    whole = es.load(options.model)
    cuts = Cuts(channels=options.ffn, layers=options.layers, top_k=options.top_k)
    for name, refit in (("plain", False), ("cut", True)):
        small = prune_structured(whole, cuts, calibration=options.calibration, refit=refit)
        write_model(small, options.output / name, force=True)
    return {"parameters": {"whole": whole.num_parameters, "cut": small.num_parameters}}


def recover(options: argparse.Namespace) -> Results:
    whole, small = es.load(options.model), es.load(options.output / "cut")
    ends: list[float] = []
    healed = heal(
        small, whole, data=options.data, minutes=options.minutes, steps=options.steps,
        batch=options.batch, window=options.window,
        progress=lambda _: ends.append(time.monotonic()),
    )  # fmt: skip
    write_model(healed, options.output / "recovered", force=True)
    each = (ends[-1] - ends[0]) / max(1, len(ends) - 1)
    row = {"seconds a step": round(each, 3), "steps": len(ends), "batch": options.batch}
    return {"recovery": {**row, "window": options.window}}


def score(options: argparse.Namespace) -> Results:
    found = {}
    for name in WORDS:
        path = options.model if name == "whole" else options.output / name
        if path.exists() and options.only in (None, name):
            measured = es.evaluate(
                es.load(path), text=options.text, max_windows=options.eval_windows
            )
            assert measured.perplexity is not None
            found[name] = round(measured.perplexity, 3)
    return {"perplexity": found, "scored": {"windows": options.eval_windows}}


def speed(options: argparse.Namespace) -> Results:
    models = {"whole": es.load(options.model), "cut": es.load(options.output / "cut")}
    cases = {"512 tokens, float32": _prefill, "64 tokens one by one, 4 bits": _decode}
    wanted = {name: case for name, case in cases.items() if options.only in (None, name)}
    return {"speed": {name: speed_up(case(models)) for name, case in wanted.items()}}


def _prefill(models: Mapping[str, CapturedModel]) -> Callable[[str], float]:
    dense = {name: model.loader().float() for name, model in models.items()}
    tokens = torch.arange(512)[None]

    def run(name: str) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            dense[name](input_ids=tokens, use_cache=False)
        return time.perf_counter() - began

    return run


def _decode(models: Mapping[str, CapturedModel]) -> Callable[[str], float]:
    """Return what times the tokens after the first: opening the model is once, they are many."""
    rule = es.Recipe((es.Rule(bits=4, group_size=32, quantizer="rtn"),))
    packed = {name: es.compress(model, es.plan(model, rule)) for name, model in models.items()}

    def run(name: str) -> float:
        tokens = stream(packed[name], PROMPT, tokens=TOKENS + 1, temperature=0)
        next(tokens)
        began = time.perf_counter()
        for _ in tokens:
            pass
        return time.perf_counter() - began

    return run


def speed_up(run: Callable[[str], float]) -> dict[str, float]:
    """Return times and how much faster the cut model is: medians of rounds taken in turns."""
    times: dict[str, list[float]] = {"whole": [], "cut": []}
    for i in range(ROUNDS + 1):
        for name, taken in times.items():
            seconds = run(name)
            if i:  # the first warms up
                taken.append(seconds)
    ratios = [a / b for a, b in zip(times["whole"], times["cut"], strict=True)]
    medians = {f"{name} ms": round(1000 * statistics.median(t), 2) for name, t in times.items()}
    return {**medians, "faster": round(statistics.median(ratios), 3)}


def table(options: argparse.Namespace) -> Results:
    """Print the table of the docs."""
    found: Results = json.loads((options.output / "results.json").read_text(encoding="utf-8"))
    whole, left = (found["parameters"][name] for name in ("whole", "cut"))
    print("| | parameters | perplexity |\n|---|---|---|")
    for name, words in WORDS.items():
        if name in found["perplexity"]:
            count = whole if name == "whole" else left
            print(f"| {words} | {count / 1e6:.2f} M | {found['perplexity'][name]:.2f} |")
    print("\n| | before | cut | faster | × the ratio of parameters |\n|---|---|---|---|---|")
    for name, row in found["speed"].items():
        share = row["faster"] / (whole / left)
        print(
            f"| {name} | {row['whole ms']:.1f} ms | {row['cut ms']:.1f} ms "
            f"| {row['faster']:.2f} | {share:.2f} |"
        )
    return {}


def experts(options: argparse.Namespace) -> Results:
    """Print the table of a mixture."""
    whole = es.load(options.model)
    cuts = [Cuts(**{how: n}) for n in (1, 2, 4) for how in ("experts", "merged")] + [Cuts(top_k=1)]
    print("| | parameters | perplexity |\n|---|---|---|")
    for cut_ in (None, *cuts):
        model = whole
        if cut_ is not None:
            model = prune_structured(whole, cut_, calibration=options.calibration, windows=16)
        measured = es.evaluate(model, text=options.text, max_windows=20).perplexity
        print(f"| {cut_} | {model.num_parameters / 1e6:.2f} M | {measured:.2f} |", flush=True)
    return {}


def keep(found: Results, folder: Path) -> None:
    """Add to what earlier stages found."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    known: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, row in found.items():
        known[name] = {**known.get(name, {}), **row}
    path.write_text(json.dumps(known, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ffn", type=float, default=0.25)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--minutes", type=float, help="of training")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--window", type=int, default=512, help="of training")
    parser.add_argument("--eval-windows", type=int, default=60)
    parser.add_argument("--only", help="one model to score, or one case to time")
    options = parser.parse_args()
    found = STAGES[options.stage](options)
    if found:
        keep(found, options.output)
        print(json.dumps(found))


STAGES: dict[str, Callable[[argparse.Namespace], Results]] = {
    "cut": cut, "recover": recover, "score": score, "speed": speed, "table": table,
    "experts": experts,
}  # fmt: skip

if __name__ == "__main__":
    main()
