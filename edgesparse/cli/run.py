"""``edgesparse run``: execute an artifact once on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._options import common, force_option
from edgesparse.errors import OutputExists


@click.command(short_help="Execute a .pte or .mlpackage once on this host.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    required=True,
    metavar="NPZ",
    help="Arrays named as the artifact's inputs; 'edgesparse inspect' lists them.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="NPZ", help="Keep the outputs."
)  # fmt: skip
@force_option
@common
def run(artifact: Path, inputs: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Execute ARTIFACT once on this host and show its outputs."""
    import numpy as np

    from edgesparse.exporting import run as execute
    from edgesparse.store.arrays import read_arrays

    if output is not None and output.exists() and not force:
        raise OutputExists(f"{output} exists; --force replaces it")
    arrays = read_arrays(inputs)
    with working(f"running {artifact.name}"):
        outputs = execute(artifact, arrays)
    if output is not None:
        np.savez(output, allow_pickle=False, **dict(outputs))
    rows = {name: _summary(np.asarray(value)) for name, value in outputs.items()}
    if as_json:
        show_json(rows)
        return
    from edgesparse.report.tables import columns

    table = columns("output", "shape", "dtype", "least", "mean", "most", left=3)
    for name, row in rows.items():
        table.add_row(
            name, "×".join(map(str, row["shape"])), row["dtype"],
            *(f"{row[key]:.5g}" for key in ("least", "mean", "most")),
        )  # fmt: skip
    show(table)


def _summary(value: Any) -> dict[str, Any]:
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype),
        "least": float(value.min()),
        "mean": float(value.mean()),
        "most": float(value.max()),
    }
