"""Damaged packages: every one must end in an error that names it, or be read, within five seconds.

    TMPDIR=/dev/shm python converters/bench/coreml_fuzz.py [--mutations 50000] [--seed 0]

A small package (masks, codes, tables, a convolution, an embedding) is damaged in one of its three
files: bytes changed, lengths and offsets set to extremes, pieces cut out, doubled or moved. Of each
all weights are read back, and it is executed. What happened is counted; whatever raises
anything but an error of this package, or takes too long, is listed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from edgesparse_converters.coreml.execute import Executor
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import read_weights
from torch import nn

import edgesparse as es
from edgesparse.errors import EdgesparseError
from edgesparse.pattern import Pattern

FILES = {
    "Data/com.apple.CoreML/model.mlmodel": 0.7,
    "Data/com.apple.CoreML/weights/weight.bin": 0.2,
    "Manifest.json": 0.1,
}
LIMIT_SECONDS = 5
ADDRESS_SPACE = 12 << 30
EXTREMES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\xff" * 9 + b"\x01")


class Small(nn.Module):
    """An embedding, a linear layer and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up = nn.Embedding(64, 64), nn.Linear(64, 96)
        self.conv = nn.Conv1d(96, 32, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return a distribution for every channel."""
        x = torch.tanh(self.up(self.tokens(ids)))
        return torch.softmax(self.conv(x.transpose(1, 2)), -1)


def make_package(path: Path) -> Path:
    """Write the package that will be damaged."""
    torch.manual_seed(0)
    captured = es.load(Small().eval(), example_inputs={"ids": torch.arange(12)[None]})
    half = Pattern(sparsity=0.5)
    common = {"pattern": half, "method": "magnitude", "quantizer": "rtn", "group_size": 32}
    rules = (
        es.Rule(name="tokens.weight", bits=2, **common),
        es.Rule(name="up.weight", bits=4, **common),
        es.Rule(bits=8, **common),
    )
    small = es.compress(captured, es.plan(captured, es.Recipe(rules)))
    return es.export(small, path=path).path


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Return ``data`` damaged in one to four places."""
    damaged = bytearray(data)
    for _ in range(int(generator.integers(1, 5))):
        size = len(damaged)
        at = int(generator.integers(0, size + 1))
        match int(generator.integers(0, 6)):
            case 0 | 1 if size:
                damaged[at % size] ^= 1 << int(generator.integers(0, 8))
            case 2:
                extreme = EXTREMES[int(generator.integers(0, len(EXTREMES)))]
                damaged[at : at + len(extreme)] = extreme
            case 3:
                del damaged[at : at + int(generator.integers(1, 64))]
            case 4:
                damaged[at:at] = damaged[at : at + int(generator.integers(1, 64))]
            case _:
                del damaged[at:]
    return bytes(damaged)


def read_whole(path: Path) -> None:
    """Read every weight of a package and execute its default function."""
    package = Package(path)
    read_weights(package)
    executor = Executor(package)
    inputs = {
        name: np.zeros([size or 3 for size in kind.shape], np.int32)
        for name, kind in executor.inputs.items()
        if np.prod([size or 3 for size in kind.shape], dtype=object) < 1 << 20
    }
    executor.run(inputs)


def attempt(path: Path) -> str:
    """Return what reading a damaged package came to, in one word or a traceback's last line."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_SECONDS)
    try:
        read_whole(path)
    except EdgesparseError as error:
        return type(error).__name__
    except (Exception, TimeoutError) as error:  # that is what is looked for
        return f"!! {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "read"


def fuzz(package: Path, mutations: int, seed: int) -> Iterator[tuple[int, str]]:
    """Yield the number of each mutation and what it came to."""
    whole = {name: (package / name).read_bytes() for name in FILES}
    with tempfile.TemporaryDirectory() as folder:
        victim = Path(folder) / "victim.mlpackage"
        shutil.copytree(package, victim)
        for index in range(mutations):
            generator = np.random.default_rng((seed, index))
            name = str(generator.choice(list(FILES), p=list(FILES.values())))
            (victim / name).write_bytes(mutate(whole[name], generator))
            yield index, attempt(victim)
            (victim / name).write_bytes(whole[name])


@contextmanager
def limited_memory() -> Iterator[None]:
    """Let an absurd size end in an error rather than in the machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT_SECONDS} seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started, counts = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(Path(folder) / "whole.mlpackage")
        with limited_memory():
            for index, outcome in fuzz(package, arguments.mutations, arguments.seed):
                counts[outcome] += 1
                if outcome.startswith("!!"):
                    print(f"seed {arguments.seed}, mutation {index}: {outcome}", flush=True)
    seconds = time.monotonic() - started
    print(f"{arguments.mutations} mutations, {seconds:.0f} s:", dict(counts.most_common(8)))
    return int(any(outcome.startswith("!!") for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
