"""Feed damaged and hostile files to every reader of this package; all it may do is say no.

    python bench/fuzz_readers.py --reader all --count 50000

Each input is a valid file with a few mutations: bytes flipped, cut, doubled or moved, numbers
replaced by those that break arithmetic, JSON values replaced by others. A reader may return a value
or raise an ``EdgesparseError``. Anything else is a finding: another exception, more than five
seconds, more than 256 MB of memory. Findings are written to ``--findings`` with their seed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_artifacts import artifact_readers
from fuzz_devices import bundle_reader, checkpoint_reader, record_reader
from torch import nn

from edgesparse.capture import load as capture
from edgesparse.errors import CorruptPack, EdgesparseError
from edgesparse.journal import Journal
from edgesparse.journal.beside import recall, remember
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.planner.measured import VERSION
from edgesparse.recipe import Recipe
from edgesparse.search import Point, front_of, read_point
from edgesparse.store import load, save
from edgesparse.store.arrays import read_arrays
from edgesparse.store.manifest import read_manifest
from edgesparse.store.measurements import read_measurements
from edgesparse.store.tensorfile import TensorFile

SECONDS = 5
RECIPE = b"""
[[rule]]
match = { kind = "embedding" }
bits = 4
group_size = 32

[[rule]]
match = { name = "re:.*down_proj$" }
pattern = "2:4"
method = "admm"

[[rule]]
match = { kind = "linear" }
sparsity = 0.5
method = "sparsegpt"
bits = 4
"""
ALARMS = (signal.SIGALRM, signal.SIGPROF)
MEMORY_NBYTES = 256 << 20
NUMBERS = (0, 1, -1, 2**7, 2**8, 2**15, 2**16, 2**31, 2**32, 2**62, 2**63, 2**64, 10**400)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0.5,
    -1.0,
    1e300,
    "",
    "x",
    "../x",
    "\0",
    [],
    {},
    [[]],
    {"": 0},
)

Read = Callable[[bytes], object]


class TooSlow(BaseException):
    """Not an Exception: no reader may swallow it."""


@dataclass
class Outcome:
    """What came of the inputs of one reader."""

    tried: int = 0
    refused: int = 0
    findings: list[str] = field(default_factory=list)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one to four mutations."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice((mutate_bytes, mutate_bytes, mutate_number, mutate_json))(content, rng)
    return content


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, double or move a stretch of bytes, near the beginning more often."""
    if not content:
        return bytes(rng.randrange(256) for _ in range(9))
    place = int(len(content) * rng.random() ** rng.choice((1, 4)))
    length = rng.choice((1, 1, 2, 4, 8, 64, 1000))
    before, middle, after = (
        content[:place],
        content[place : place + length],
        content[place + length :],
    )
    match rng.randrange(5):
        case 0:
            return before + bytes(b ^ 1 << rng.randrange(8) for b in middle) + after
        case 1:
            return before + bytes(rng.randrange(256) for _ in middle) + after
        case 2:
            return before + after
        case 3:
            return before + middle + middle + after
        case _:
            return before


def mutate_number(content: bytes, rng: random.Random) -> bytes:
    """Overwrite eight bytes with a number that breaks arithmetic."""
    place = rng.randrange(max(1, len(content) - 8)) if rng.random() < 0.7 else 0
    number = rng.choice([n for n in NUMBERS if 0 <= n < 2**64])
    width = rng.choice((1, 2, 4, 8))
    return content[:place] + number.to_bytes(8, "little")[:width] + content[place + width :]


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Replace one value of the first JSON object; a length before it is kept right."""
    begin = content.find(b"{")
    try:
        text = content[begin:].decode("latin-1")
        value, length = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return content
    places = list(_places(value))
    if not places:
        return content
    holder, key = rng.choice(places)
    match rng.randrange(4):
        case 0 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "name", "\0", "../x"))] = holder.pop(key)
        case 1:
            del holder[key]
        case 2:
            holder[key] = rng.choice(NUMBERS)
        case _:
            other, name = rng.choice(places)
            holder[key] = rng.choice((*VALUES, other[name] if name in _keys(other) else 1))
    try:
        new = json.dumps(value).encode("latin-1", "replace")
    except (ValueError, RecursionError):
        return content
    prefix, rest = content[:begin], content[begin + length :]
    if begin == 8:  # a safetensors header: the mutation should get past the length
        rest = rest.lstrip(b" ")
        new += b" " * (-(8 + len(new)) % 64)
        prefix = len(new).to_bytes(8, "little")
    return prefix + new + rest


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, (dict, list)):
        for key in list(_keys(value)):
            yield value, key
            yield from _places(value[key])


class Net(nn.Module):
    """A little of everything that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(21, 20)
        self.norm = nn.BatchNorm1d(20)
        self.up = nn.Linear(20, 33)
        self.head = nn.Linear(33, 21, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``tokens``."""
        logits: torch.Tensor = self.head(torch.relu(self.up(self.norm(self.embed(tokens)))))
        return logits


def compressed_net() -> CompressedModel:
    """Return a small model, all of it packed with round-to-nearest."""
    from edgesparse.compression import compress
    from edgesparse.planner import plan
    from edgesparse.recipe import Recipe, Rule

    torch.manual_seed(0)
    captured = capture(Net().eval(), example_inputs=torch.arange(6))
    sparse = Rule(method="magnitude", quantizer="rtn", bits=4, group_size=16)
    return compress(captured, plan(captured, Recipe((sparse,))))


def readers(directory: Path) -> dict[str, tuple[bytes, Read]]:
    """Return, by name, a valid file and the function that reads its mutations."""
    small = compressed_net()
    pack = save(small, directory / "pack")
    model = transformers_directory(directory / "model")
    program = directory / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (torch.arange(6),)), program)
    state = directory / "state.bin"
    torch.save({name: value.clone() for name, value in Net().state_dict().items()}, state)
    manifest = (pack / "edgesparse.json").read_bytes()
    weights = (pack / "weights.safetensors").read_bytes()
    return {
        "safetensors": (weights, lambda content: _tensors(_at(directory / "f", content))),
        "manifest": (manifest, read_manifest),
        "pack": (weights, lambda content: _pack(pack, manifest, content, small.captured)),
        "deflated": deflated_reader(directory / "deflated", small),
        "config": ((model / "config.json").read_bytes(), lambda c: _model(model, "config.json", c)),
        "model": (
            (model / "model.safetensors").read_bytes(),
            lambda content: _model(model, "model.safetensors", content),
        ),
        "bin": (state.read_bytes(), lambda content: _bin(_at(state, content))),
        "pt2": (program.read_bytes(), lambda content: capture(_at(program, content))),
        "recipe": (
            RECIPE,
            lambda content: Recipe.from_toml(_at(directory / "recipe.toml", content)),
        ),
        "tokenizer": (small_tokenizer(), lambda content: _tokenizer(directory, content)),
        "journal": journal_reader(directory / "journal", small),
        "plan": plan_reader(directory / "asked", small),
        "npz": npz_reader(directory / "inputs.npz"),
        "search": search_reader(directory / "point.json"),
        "losses": losses_reader(directory / "losses.json"),
        **artifact_readers(directory / "artifacts", small),
        "record": record_reader(directory / "record.json"),
        "bundle": bundle_reader(directory / "bundle"),
        "checkpoint": checkpoint_reader(directory / "state.safetensors"),
    }


def deflated_reader(path: Path, small: CompressedModel) -> tuple[bytes, Read]:
    """Return the weights of a pack of deflate streams and what reads their mutations."""
    pack = save(small, path, deflated=True)
    manifest = (pack / "edgesparse.json").read_bytes()
    assert b'"deflated"' in manifest
    weights = (pack / "weights.safetensors").read_bytes()
    return weights, lambda content: _pack(pack, manifest, content, small.captured)


def small_tokenizer() -> bytes:
    """Return a tokenizer of a few merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["?"], show_progress=False)
    made.train_from_iterator(["the cat sat on the mat, and that was that"], trainer)
    return made.to_str().encode()


def journal_reader(folder: Path, small: CompressedModel) -> tuple[bytes, Read]:
    """Return a journal of one part, and what opens it: the parts stay as they are."""
    journal = Journal(folder, {"job": 1})
    journal.commit([journal.write_part(small.packed, small.errors, dict.fromkeys(small.packed, 0))])
    journal.close()
    parts = {path: path.read_bytes() for path in folder.iterdir()}

    def read(content: bytes) -> None:
        for path, original in parts.items():
            own = path.name == "journal.jsonl"
            path.write_bytes(_with_right_checks(content) if own else original)
        opened = Journal(folder, {"job": 1})
        opened.close()
        for name in set(opened.finished) & set(small.packed):
            opened.packed(small.captured.by_name[name]).decode()

    return parts[folder / "journal.jsonl"], read


def _with_right_checks(content: bytes) -> bytes:
    """Return the lines of a journal with checksums that are right: damage should get past them."""
    texts = [line.partition(b" ")[2] for line in content.split(b"\n")[:-1]]
    checks = [hashlib.sha256(text).hexdigest()[:16].encode() for text in texts]
    return b"".join(c + b" " + text + b"\n" for c, text in zip(checks, texts, strict=True))


def plan_reader(folder: Path, small: CompressedModel) -> tuple[bytes, Read]:
    """Return a remembered plan, and what recalls it."""
    remember(folder, {"x": 1}, small.plan)
    path = folder / "plan.json"
    captured = small.captured
    return path.read_bytes(), lambda content: recall(_at(path, content).parent, {"x": 1}, captured)


def npz_reader(path: Path) -> tuple[bytes, Read]:
    """Return arrays as calibration inputs are given, and what reads them."""
    np.savez_compressed(path, x=np.arange(12.0).reshape(3, 4), tokens=np.zeros((2, 9), np.int64))
    return path.read_bytes(), lambda content: read_arrays(_at(path, content))


def search_reader(path: Path) -> tuple[bytes, Read]:
    """Return what a search remembers of a point, and what recalls it."""
    point = Point(name="1MB", arguments=("model", "--bits", "4"), nbytes=9, loss=0.5)
    path.write_text(json.dumps(asdict(point)))
    return path.read_bytes(), lambda content: front_of([read_point(_at(path, content))])


def losses_reader(path: Path) -> tuple[bytes, Read]:
    """Return the losses a plan remembers, and what recalls them: damaged ones count for nothing."""
    losses = {"up.weight": {"4-bit g32": 0.25, "removed": 1e-3}, "down.weight": {}}
    path.write_text(json.dumps({"version": VERSION, "losses": losses}))

    def read(content: bytes) -> None:
        if not read_measurements(_at(path, content), "losses", version=VERSION):
            raise CorruptPack("nothing is recalled")

    return path.read_bytes(), read


def _tokenizer(directory: Path, content: bytes) -> None:
    from edgesparse.runtime.text import read_tokenizer, token_ids

    read_tokenizer.cache_clear()
    token_ids(read_tokenizer(_at(directory / "tokenizer.json", content)), "the cat?")


def transformers_directory(directory: Path) -> Path:
    """Write a very small Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _at(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _tensors(path: Path) -> None:
    file = TensorFile(path)
    for name in file.entries:
        file.tensor(name)


def _pack(pack: Path, manifest: bytes, content: bytes, captured: CapturedModel) -> None:
    """Read a pack whose weights are ``content``, with digests that are right."""
    value = json.loads(manifest)
    digest = hashlib.sha256(content).hexdigest()
    value["files"]["weights.safetensors"] = {"nbytes": len(content), "sha256": digest}
    _at(pack / "edgesparse.json", json.dumps(value).encode())
    _at(pack / "weights.safetensors", content)
    for packed in load(pack, source=captured).packed.values():
        packed.decode()


def _model(directory: Path, name: str, content: bytes) -> None:
    original = (directory / name).read_bytes()
    try:
        captured = capture(_at(directory / name, content).parent)
        captured.loader()
    finally:
        _at(directory / name, original)


def _bin(path: Path) -> None:
    from edgesparse.capture.checkpoint import _open_bin

    for stored in _open_bin(path).values():
        stored.read()


def fuzz(name: str, valid: bytes, read: Read, *, count: int, seed: int) -> Outcome:
    """Read ``count`` mutations of ``valid``."""
    outcome = Outcome()
    for i in range(count):
        content = mutate(valid, random.Random(f"{seed}/{name}/{i}"))
        try:
            finding = _try(read, content, outcome)
        except KeyboardInterrupt:  # say how far it came
            break
        outcome.tried += 1
        if finding:
            outcome.findings.append(f"{name} {seed} {i}: {finding}")
    return outcome


def _try(read: Read, content: bytes, outcome: Outcome) -> str:
    before = _peak_nbytes(reset=True)
    # Seconds of this process: a busy machine is no finding. The other alarm is for a reader that
    # waits for something.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(60)
    try:
        read(content)
    except EdgesparseError:
        outcome.refused += 1
    except (Exception, TooSlow):
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    grown = _peak_nbytes() - before
    return f"{grown} bytes of memory" if grown > MEMORY_NBYTES else ""


def _peak_nbytes(*, reset: bool = False) -> int:
    """Return the most memory held since the last reset; without Linux, since the start."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def _too_slow(*_: object) -> None:
    raise TooSlow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", default="all")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("findings.txt"))
    options = parser.parse_args()
    for alarm in ALARMS:
        signal.signal(alarm, _too_slow)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        every = readers(Path(directory))
        for name in every if options.reader == "all" else options.reader.split(","):
            started = time.monotonic()
            # Output of readers to stderr (torch's own complaints) would drown the table.
            with contextlib.redirect_stderr(None):
                outcome = fuzz(name, *every[name], count=options.count, seed=options.seed)
            sys.stdout.write(
                f"{name:12} {outcome.tried:7} tried {outcome.refused:7} refused "
                f"{len(outcome.findings):4} findings {time.monotonic() - started:7.0f} s\n"
            )
            sys.stdout.flush()
            with options.findings.open("a") as file:
                file.writelines(f"{finding}\n" for finding in outcome.findings)


if __name__ == "__main__":
    main()
