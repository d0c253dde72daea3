"""Time every product that the table of the kernels shows, part by part, and print it.

    python kernels/bench/table.py [--ggml ggml_product.so] [--only 4096x4096.*streamed]

Each part (shape, in cache or streamed, batch, threads) runs in a process of its own and is written
down when it is done: a run that was stopped goes on, and ``--again`` measures anew. ``--only`` is a
regular expression over the parts' names. Peers that are not there are named as such.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from products import rows, title

SHAPES = ("1024x1024", "4096x4096", "11008x4096")
CLASSICS_26M = ("512x512", "256x512", "1408x512", "512x1408", "4096x512")
BATCHES = (1, 4, 16, 64)


def parts() -> Iterator[tuple[str, list[str]]]:
    """Yield names, and the arguments of products.py they stand for."""
    cells = [(shape, "streamed", batch) for shape in SHAPES for batch in BATCHES]
    cells += [("1024x1024", "cached", batch) for batch in BATCHES]
    cells += [(shape, "cached", 1) for shape in CLASSICS_26M]
    for threads in (1, 2):
        for shape, where, batch in cells:
            arguments = ["--shape", shape, "--batch", str(batch), "--threads", str(threads)]
            cached = ["--cached"] if where == "cached" else []
            yield f"{shape} {where} batch {batch} threads {threads}", [*arguments, *cached]


def measure(arguments: list[str]) -> dict[str, Any]:
    """Run products.py and return what it found."""
    script = Path(__file__).with_name("products.py")
    done = subprocess.run(
        [sys.executable, str(script), "--json", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml", type=Path, help="built from peers/ggml_product.cpp")
    parser.add_argument("--only", default="", help="a regular expression over names of parts")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--again", action="store_true", help="measure what is known anew")
    parser.add_argument("--ours-only", action="store_true", help="no torch and SciPy")
    parser.add_argument("--output", type=Path, default=Path("out/bench/kernels.json"))
    arguments = parser.parse_args()
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    options = ["--rounds", str(arguments.rounds)]
    options += ["--ggml", str(arguments.ggml)] if arguments.ggml else []
    options += ["--ours-only"] if arguments.ours_only else []
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in parts() if re.search(arguments.only, part[0])]
    if not arguments.ggml:
        sys.stderr.write("llama.cpp is not measured: give --ggml, see kernels/bench/README.md\n")
    for name, cell in chosen:
        if name not in known or arguments.again:
            sys.stderr.write(f"{name}\n")
            known[name] = measure([*cell, *options])
            beside = arguments.output.with_suffix(".new")
            beside.write_text(json.dumps(known, indent=1))
            beside.replace(arguments.output)
    for name, _ in chosen:
        sys.stdout.write(f"### {title(known[name])}\n\n{rows(known[name])}\n")


if __name__ == "__main__":
    main()
