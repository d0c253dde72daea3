"""The architectures of `coreml_zoo.py`, half pruned and in 4 bits, as ExecuTorch programs run here.

    python converters/bench/executorch_zoo.py [name ...] [--table docs/executorch.md]

Printed for each: how many weights are read back bit for bit, the smallest cosine of an output of
the runtime with that of the packed model in torch with float32 activations, the largest error
relative to the same model with the program's own activations, the forms its weights took, and the
bytes. ``--table`` puts the rows between the markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from coreml_zoo import RECIPE, ZOO, _cosine, _settled, write_table
from edgesparse_converters.executorch.cases import draw_inputs
from edgesparse_converters.executorch.function import function_of
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.session import execute

import edgesparse as es
from edgesparse.model import CompressedModel
from edgesparse.runtime.modules import build_decoded

SMALLEST_COSINE = 0.9999


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one model showed."""

    HEAD = (
        "| model | weights equal bit for bit | cosine | error, same activations | forms | bytes |\n"
        "|---|---|---|---|---|---|"
    )

    name: str
    verdict: bool
    weights: int
    equal: int
    cosine: float
    error: float
    forms: str
    nbytes: int

    @property
    def ok(self) -> bool:
        """Whether the model meets the contract."""
        return self.verdict and self.weights == self.equal > 0 and self.cosine >= SMALLEST_COSINE

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.equal} of {self.weights} | {self.cosine:.7f} "
            f"| {self.error:.1e} | {self.forms} | {self.nbytes:,} |"
        )


def measure(name: str, folder: Path) -> Row:
    """Compress, export, read back and execute one model of the zoo."""
    torch.manual_seed(0)
    captured = es.load(_settled(ZOO[name]().eval()))
    small = es.compress(captured, es.plan(captured, RECIPE))
    artifact = es.export(small, "executorch", folder / f"{name.replace(' ', '-')}.pte")
    verdict = es.validate(artifact, small, calls=2)
    forms = collections.Counter(artifact.lowering.values())
    return Row(
        name=name,
        verdict=verdict.ok,
        weights=len(verdict.layers),
        equal=sum(layer.equal for layer in verdict.layers),
        cosine=_smallest_cosine(artifact.path, small),
        error=max(check.relative_error for check in verdict.outputs),
        forms=", ".join(f"{count} {form}" for form, count in sorted(forms.items())),
        nbytes=artifact.nbytes,
    )


def _smallest_cosine(path: Path, small: CompressedModel) -> float:
    """Return the cosine of the worst output of two calls."""
    calls = draw_inputs(read_program(path), small, calls=2, seed=0)
    model, smallest = build_decoded(small), 1.0
    for call, found in zip(calls, execute(path, calls), strict=True):
        tensors = {name: torch.from_numpy(array) for name, array in call.items()}
        function = function_of(small.captured, model, tensors)
        with torch.no_grad():
            expected = dict(zip(function.outputs, function(**tensors), strict=True))
        for name, value in found.items():
            if np.issubdtype(value.dtype, np.floating):
                smallest = min(smallest, _cosine(value, expected[name].numpy()))
    return smallest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or ZOO:
            began = time.monotonic()
            rows.append(measure(name, Path(folder)))
            said = "" if rows[-1].ok else "NOT OK"
            print(rows[-1], f"{time.monotonic() - began:.0f} s", said, flush=True)
    if arguments.table:
        write_table(arguments.table, [Row.HEAD, *map(str, rows)])
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
