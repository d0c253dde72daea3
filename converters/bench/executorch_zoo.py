"""The architectures of `coreml_zoo.py`, half pruned and in 4 bits, as ExecuTorch programs run here.

    python converters/bench/executorch_zoo.py [name ...]

Printed for each: the verdict, how many weights are read back bit for bit, the largest relative
error of an output against the packed model in torch, the forms its weights took, and the bytes.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from pathlib import Path

import torch
from coreml_zoo import RECIPE, ZOO, _settled

import edgesparse as es
from edgesparse.errors import EdgesparseError


def measure(name: str, folder: Path) -> str:
    """Compress, export, read back and execute one model of the zoo; return its row."""
    torch.manual_seed(0)
    captured = es.load(_settled(ZOO[name]().eval()))
    small = es.compress(captured, es.plan(captured, RECIPE))
    artifact = es.export(small, "executorch", folder / f"{name.replace(' ', '-')}.pte")
    verdict = es.validate(artifact, small, calls=2)
    forms = collections.Counter(artifact.lowering.values())
    equal = sum(layer.equal for layer in verdict.layers)
    error = max(check.relative_error for check in verdict.outputs)
    said = ", ".join(f"{count} {form}" for form, count in sorted(forms.items()))
    result = "ok" if verdict.ok else "NOT OK"
    weights = f"{equal} of {len(verdict.layers)}"
    return f"| {name} | {result} | {weights} | {error:.1e} | {said} | {artifact.nbytes:,} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ZOO)}")
    print("| model | verdict | weights equal | largest error | forms | bytes |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().names or ZOO:
            began = time.monotonic()
            try:
                row = measure(name, Path(folder))
            except EdgesparseError as error:
                row = f"| {name} | refused: {error} | | | | |"
            print(row, f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
