"""A language model as a package: its size, and its perplexity where the package itself is executed.

    python converters/bench/coreml_language.py MODEL --calibration TEXT --text TEXT
        [--scheme table] [--table-rows 0] [--keep DIR] [--windows 24] [--max-windows 20]
        [--table docs/coreml.md]      # --max-windows 0 reads the whole text

Half of the weights are removed and the rest stored in 4 bits. Printed: bytes of the package and of
its weight file, bytes a weight, and the perplexity of the packed model in torch and of the package
on the host executor, over the same windows of the text; the package's by the command a user types,
``edgesparse evaluate model.mlpackage --text``. ``--keep`` keeps the compressed model, so that a
second run goes on from there. ``--table`` puts the row between the markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import edgesparse as es
from edgesparse.pattern import Pattern

START, END = "<!-- language -->", "<!-- /language -->"
PREFILL = 128
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model showed."""

    name: str
    scheme: str
    package_nbytes: int
    nbytes_per_weight: float
    windows: int
    packed: float
    package: float

    def __str__(self) -> str:
        difference = self.package / self.packed - 1
        return (
            f"| {self.name} | {self.scheme} | {self.package_nbytes / 1e6:.2f} MB "
            f"| {self.nbytes_per_weight:.4f} | {self.packed:.3f} | {self.package:.3f} "
            f"({difference:+.3%}) | {self.windows} |"
        )


def compressed(arguments: argparse.Namespace) -> es.CompressedModel:
    """Return the packed model, from where it was kept if it was."""
    if arguments.keep is not None and (arguments.keep / "edgesparse.json").exists():
        return es.CompressedModel.load(arguments.keep)
    rule = es.Rule(
        pattern=Pattern(sparsity=0.5), method="sparsegpt", bits=4, scheme=arguments.scheme,
        table_rows=arguments.table_rows, group_size=arguments.group_size,
    )  # fmt: skip
    captured = es.load(arguments.model)
    plan = es.plan(captured, es.Recipe((rule,)))
    small = es.compress(captured, plan, arguments.calibration, windows=arguments.windows)
    if arguments.keep is not None:
        small.save(arguments.keep)
    return small


def measure(arguments: argparse.Namespace) -> Row:
    small = compressed(arguments)
    window, limit = arguments.window, arguments.max_windows or None
    with TemporaryDirectory() as folder:
        # With state: of a fixed length, a mask of window × window would be a constant of the file.
        path, prefill = Path(folder) / "model.mlpackage", min(window, PREFILL)
        artifact = es.export(small, path=path, context=window, prefill=prefill)
        weights = (artifact.path / WEIGHTS).stat().st_size
        windows, perplexity = score(artifact.path, arguments, limit)
    packed = es.evaluate(small, text=arguments.text, window=window, max_windows=limit)
    one = next(iter(small.packed.values())).spec
    return Row(
        name=small.captured.name,
        scheme=f"{one.scheme}, group {one.group_size}" if one.group_size else one.scheme,
        package_nbytes=artifact.nbytes,
        nbytes_per_weight=weights / sum(math.prod(p.shape) for p in small.packed.values()),
        windows=windows,
        packed=packed.perplexity,
        package=perplexity,
    )


def score(path: Path, arguments: argparse.Namespace, limit: int | None) -> tuple[int, float]:
    """Return windows and perplexity of a package, as the command line measures them."""
    words = [
        "evaluate", path, "--text", arguments.text, "--window", arguments.window,
        "--source", arguments.model, "--json", *(() if limit is None else ("--max-windows", limit)),
    ]  # fmt: skip
    command = [sys.executable, "-m", "edgesparse", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    return found["windows"], found["perplexity"]


def write_table(path: Path, row: Row) -> None:
    """Put the row between the markers of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    lines = (
        "| 50 % + 4 bits | codes | package | weight file, bytes a weight | packed perplexity "
        "| package perplexity | windows |",
        "|---|---|---|---|---|---|---|",
        str(row),
    )
    path.write_text("\n".join((f"{head}{START}", *lines, f"{END}{tail}")), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    for name in ("calibration", "text"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("keep", "table"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--scheme", default="table")
    for name, value in (("table-rows", 0), ("group-size", 0), ("windows", 24), ("window", 512),
                        ("max-windows", 20)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    row = measure(arguments)
    print(row)
    if arguments.table is not None:
        write_table(arguments.table, row)


if __name__ == "__main__":
    main()
