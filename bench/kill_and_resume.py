"""Kill commands at random moments, go on, and compare what comes out.

    python bench/kill_and_resume.py --count 100 --what compress,recover,export,package

``recover`` trains block by block, ``export`` writes a program for ExecuTorch, ``package`` a package
for Core ML. Every round starts a
command in a process of its own, kills it with SIGKILL at a random moment of its usual duration,
looks at what lies there (a result is whole, or it is not there), and runs it to its end with
``--resume``; an export has nothing to go on with and begins anew. What then lies there must be the
result of an undisturbed run, bit for bit, and nothing else. Only the clock and the command line in
the manifest may differ, and the identifiers in a package's manifest. What is exported
has one layer, the others three: lowering takes seconds a layer and is not what is looked at, nor is
importing what lowers, which this process does before the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgesparse.cli import main as command

EXAMPLES = Path(__file__).parents[1] / "examples"
EXPORTED = {"export": "tiny.pte", "package": "tiny.mlpackage"}
LIBRARIES = (
    "edgesparse.compression", "edgesparse.recovery", "edgesparse.exporting", "executorch.exir",
    "coremltools", "torch.export",
)  # fmt: skip


@dataclass
class Rounds:
    """What was seen.

    Attributes:
        found: How many kills found which state: nothing, a journal, a result.
        faults: What should not have been.
    """

    found: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def make_model(path: Path, *, layers: int) -> Path:
    """Write a random Llama with the bundled tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).half().save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "models" / "classics-4m" / name, path)
    text = (EXAMPLES / "data" / "calibration.txt").read_text(encoding="utf-8")
    (path.parent / "text.txt").write_text(text[:6000], encoding="utf-8")
    return path


def compression(model: Path, output: Path, *more: str) -> list[str]:
    return [
        "compress", str(model), "-o", str(output), "--calibration",
        str(model.parent / "text.txt"), "--sparsity", "0.5", "--bits", "4", "--group-size", "32",
        "--window", "32", "--windows", "8", "--method", "sparsegpt", "--no-compare", *more,
    ]  # fmt: skip


def recovery(small: Path, text: Path, output: Path, *more: str) -> list[str]:
    return [
        "recover", str(small), "-o", str(output), "--data", str(text), "--blockwise",
        "--steps", "20", "--window", "32", "--windows", "16", *more,
    ]  # fmt: skip


def export(small: Path, output: Path, *more: str) -> list[str]:
    return ["export", str(small), "-o", str(output), *more]


def start(arguments: Sequence[str]) -> int:
    """Run a command line in a child that has its libraries loaded already; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        command(list(arguments))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        os._exit(code)


def warm_up(arguments: Sequence[str]) -> None:
    """Run a command line here, so that every child has what it imports and caches."""
    with contextlib.redirect_stdout(None), contextlib.suppress(SystemExit):
        command(list(arguments))


def finish(child: int) -> int:
    """Wait for a child; return its exit code, minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def timed(arguments: Sequence[str]) -> float:
    started = time.monotonic()
    code = finish(start(arguments))
    if code:
        raise SystemExit(f"the undisturbed run failed with {code}: {' '.join(arguments)}")
    return time.monotonic() - started


def kill_during(arguments: Sequence[str], seconds: float) -> None:
    child = start(arguments)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    finish(child)


def content(path: Path) -> str:
    """Return a digest of a result: all but the clock and the command line in the manifest."""
    digest = hashlib.sha256()
    whole = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in sorted(whole):
        text = file.read_bytes()
        if file.name == "Manifest.json":  # of a package: drawn anew each time, and sorted by that
            package = json.loads(text)
            entries = package.pop("itemInfoEntries")
            root = entries[package.pop("rootModelIdentifier")]
            items = sorted(entries.values(), key=lambda entry: str(entry["path"]))
            text = json.dumps([package, root, items]).encode()
        if file.name == "edgesparse.json":
            manifest = json.loads(text)
            for key in ("seconds", "command"):
                manifest["metadata"].pop(key, None)
            text = json.dumps(manifest).encode()
        digest.update(file.name.encode() + b"\0" + text)
    return digest.hexdigest()


def disturb(
    arguments: Callable[[Path], list[str]],
    again: Callable[[Path], list[str]],
    name: str,
    folder: Path,
    *,
    count: int,
    seed: int,
) -> Rounds:
    """Kill and go on ``count`` times."""
    reference = folder / "reference" / name
    seconds = timed(arguments(reference))
    wanted, rounds, rng = content(reference), Rounds(), random.Random(f"{seed}/{name}")
    for index in range(count):
        output = folder / str(index) / name
        kill_during(arguments(output), rng.random() * seconds)
        there = (
            sorted(path.name for path in output.parent.iterdir()) if output.parent.exists() else []
        )
        rounds.found[_state(there, name)] += 1
        if name in there and content(output) != wanted:
            rounds.faults.append(f"{name} {index}: a result that is not whole")
        if name not in there:
            code = finish(start(again(output)))
            if code:
                rounds.faults.append(f"{name} {index}: going on failed with {code}")
            elif content(output) != wanted:
                rounds.faults.append(f"{name} {index}: other bytes than undisturbed")
        left = sorted(path.name for path in output.parent.iterdir())
        if left != [name] and name not in there:
            rounds.faults.append(f"{name} {index}: {left} lie there at the end")
        shutil.rmtree(output.parent)
        sys.stderr.write(f"{name} {index}: {len(rounds.faults)} faults so far\n")
    return rounds


def _state(there: Sequence[str], name: str) -> str:
    if name in there:
        return "a whole result"
    if any(path.endswith(".journal") for path in there):
        return "a journal"
    return "something hidden" if there else "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", default="compress,recover,export,package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for library in LIBRARIES:
        importlib.import_module(library)
    faults = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for what in options.what.split(","):
            rounds = run(what, folder, count=options.count, seed=options.seed)
            found = ", ".join(f"{count} × {state}" for state, count in rounds.found.most_common())
            sys.stdout.write(f"{what}: {options.count} kills found {found}; ")
            sys.stdout.write(
                f"{len(rounds.faults)} faults\n" + "".join(f"  {f}\n" for f in rounds.faults)
            )
            sys.stdout.flush()
            faults += len(rounds.faults)
    raise SystemExit(faults > 0)


def run(what: str, folder: Path, *, count: int, seed: int) -> Rounds:
    """Disturb one of the commands."""
    layers = 1 if what in EXPORTED else 3
    place = folder / f"{layers} layers"
    if what == "compress":
        first = partial(compression, make_model(place / "model", layers=layers))
    else:
        small = place / "small"
        if not small.exists():
            timed(compression(make_model(place / "source", layers=layers), small))
        text = place / "text.txt"
        first = partial(export, small) if what in EXPORTED else partial(recovery, small, text)
    if what in EXPORTED:
        warm_up(first(place / EXPORTED[what]))
    return disturb(
        first, lambda output: first(output, "--resume"), EXPORTED.get(what, "tiny"), folder / what,
        count=count, seed=seed,
    )  # fmt: skip


if __name__ == "__main__":
    main()
