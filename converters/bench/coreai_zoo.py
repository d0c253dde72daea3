"""The architectures of ``coreml_zoo`` as Core AI assets, executed by Apple's runtime on this host.

    python converters/bench/coreai_zoo.py [name ...] [--table docs/coreai.md]

Needs ``pip install 'edgesparse[coreai]'``. Printed for each: how many weights are read back bit for
bit, and the largest error relative to the largest output against the packed model in torch, both in
float32; for what cannot be converted or run, the reason. ``--table`` puts the rows between the
markers of a Markdown file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from coreml_zoo import RECIPE, ZOO, _settled, write_table
from edgesparse_converters.coreai import session
from edgesparse_converters.coreml.validation import draw_inputs, reference_outputs

import edgesparse as es
from edgesparse.errors import EdgesparseError

HEAD = ("| model | weights equal bit for bit | largest error |", "|---|---|---|")


def measure(name: str, folder: Path) -> str:
    """Return the row of one model of the zoo."""
    torch.manual_seed(0)
    captured = es.load(_settled(ZOO[name]().eval()))
    small = es.compress(captured, es.plan(captured, RECIPE))
    path = folder / f"{name.replace(' ', '-')}.aimodel"
    try:
        verdict = es.validate(es.export(small, path=path), small)
        types = session.input_types(session.describe(path))
        inputs = draw_inputs(types, small, calls=2, seed=1)
        found = session.run(path, inputs)
    except EdgesparseError as error:
        return f"| {name} | – | {error} |"
    largest = 0.0
    for outputs, expected in zip(found, reference_outputs(small, inputs), strict=True):
        for key, reference in expected.items():
            scale = np.abs(reference).max()
            largest = max(largest, float(np.abs(outputs[key] - reference).max() / scale))
    equal = sum(layer.equal for layer in verdict.layers)
    return f"| {name} | {equal} of {len(verdict.layers)} | {largest:.1e} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or ZOO:
            rows.append(measure(name, Path(folder)))
            print(rows[-1], flush=True)
    if arguments.table:
        write_table(arguments.table, [*HEAD, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
