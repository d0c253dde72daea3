"""``edgesparse bench``: how long an artifact takes on this host, and where."""

from __future__ import annotations

from pathlib import Path

import click

from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._options import common

SHOWN = 15


@click.command(short_help="Time a .pte or .mlpackage on this host.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--runs", default=20, show_default=True, help="Runs to time, after one that is not.")
@click.option("--threads", type=int, help="Threads; the runtime's own number if unset.")
@common
def bench(artifact: Path, runs: int, threads: int | None, as_json: bool) -> None:
    """Time loading ARTIFACT and running it, and its operators where the runtime can tell."""
    from edgesparse.executing import measure

    with working(f"timing {artifact.name}"):
        found = measure(artifact, runs=runs, threads=threads)
    if as_json:
        show_json(found.to_json())
        return
    from edgesparse.report.tables import columns

    show(
        f"load         {found.load:.1f} ms",
        f"{found.what:<12} {found.median:.3f} ms median of {runs}, fastest {found.fastest:.3f}",
    )
    if not found.operators:
        return
    total = sum(time.milliseconds for time in found.operators)
    table = columns("operator", "calls", "ms", "share", left=1)
    for time in found.operators[:SHOWN]:
        share = time.milliseconds / total if total else 0.0
        table.add_row(time.name, str(time.calls), f"{time.milliseconds:.3f}", f"{share:.1%}")
    rest = found.operators[SHOWN:]
    if rest:
        table.add_row(
            f"{len(rest)} more", str(sum(time.calls for time in rest)),
            f"{sum(time.milliseconds for time in rest):.3f}", "",
        )  # fmt: skip
    show(table)
