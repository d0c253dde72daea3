"""Fuzz readers guided by coverage: libFuzzer, through atheris, keeps what reaches new code.

    pip install atheris
    python bench/fuzz_guided.py --reader recipe,record --count 50000 --corpus /tmp/corpus

Each reader runs in a process of its own. The seed corpus is the valid file of ``fuzz_readers.py``
and a hundred of its mutations; half of the inputs libFuzzer asks for are made by those mutations of
what it has kept, half by its own. What is a finding is said there too; findings go to
``--findings`` and the run goes on. Only this package's own Python is watched for coverage.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgesparse", "edgesparse_converters"]):
    import fuzz_readers

import torch

from edgesparse.errors import EdgesparseError

SEEDS = 100


class Target:
    """What libFuzzer calls with every input."""

    def __init__(self, name: str, read: fuzz_readers.Read, options: argparse.Namespace) -> None:
        self._name, self._read, self._options = name, read, options
        self._tried = self._refused = self._findings = 0
        self._started = time.monotonic()

    def __call__(self, content: bytes) -> None:
        """Read one input."""
        before, began = fuzz_readers._peak_nbytes(reset=True), time.process_time()
        finding = ""
        try:
            self._read(content)
        except EdgesparseError:
            self._refused += 1
        except Exception:
            finding = traceback.format_exc()
        if time.process_time() - began > fuzz_readers.SECONDS:
            finding += "too slow"
        if fuzz_readers._peak_nbytes() - before > fuzz_readers.MEMORY_NBYTES:
            finding += "too much memory"
        self._count(finding, content)

    def _count(self, finding: str, content: bytes) -> None:
        self._tried += 1
        if finding:
            self._findings += 1
            with self._options.findings.open("a") as file:
                file.write(f"{self._name} {content.hex()[:4000]}: {finding}\n")
        if self._tried in (self._options.count, self._options.count // 2):
            seconds = time.monotonic() - self._started
            sys.stdout.write(
                f"{self._name:12} {self._tried:7} tried {self._refused:7} refused "
                f"{self._findings:4} findings {seconds:7.0f} s\n"
            )
            sys.stdout.flush()


def mutate(content: bytes, limit: int, seed: int) -> bytes:
    """Return the next input libFuzzer should try."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        return fuzz_readers.mutate(content, rng)[:limit]
    changed: bytes = atheris.Mutate(content, limit)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", required=True)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--findings", type=Path, default=Path("findings.txt"))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        every = fuzz_readers.readers(Path(directory))
        for name in options.reader.split(","):
            child = os.fork()  # libFuzzer does not return
            if not child:
                fuzz(name, *every[name], options)
            os.waitpid(child, 0)


def fuzz(name: str, valid: bytes, read: fuzz_readers.Read, options: argparse.Namespace) -> None:
    """Make the seed corpus and hand over to libFuzzer, which ends the process."""
    corpus = options.corpus / name
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "valid").write_bytes(valid)
    for index in range(SEEDS):
        seed = fuzz_readers.mutate(valid, random.Random(index))
        (corpus / f"{index:03}").write_bytes(seed)
    limit = 2 * len(valid) + 4096
    arguments = [sys.argv[0], str(corpus), f"-runs={options.count}", f"-max_len={limit}",
                 "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1"]  # fmt: skip
    atheris.Setup(arguments, Target(name, read, options), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
