"""``edgesparse validate``: execute an artifact here and compare it with the packed model."""

from __future__ import annotations

from pathlib import Path

import click

from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._models import open_compressed
from edgesparse.cli._options import common, source_option
from edgesparse.errors import ValidationFailed

SHOWN = 12


@click.command(short_help="Prove that a file computes what the model computes.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against", required=True, metavar="MODEL", help="The compressed model it was made from."
)
@source_option
@click.option("--all", "show_all", is_flag=True, help="Show equal tensors one by one too.")
@common
def validate(
    artifact: Path, against: str, source: str | None, show_all: bool, as_json: bool
) -> None:
    """Read ARTIFACT back, execute it on this host, and compare it with the packed model.

    Says for every packed tensor and every output: equal, or the error and what is allowed. Exits 1
    when an error exceeds what is allowed.
    """
    from edgesparse.exporting import require_exists
    from edgesparse.exporting import validate as check

    require_exists(artifact)
    compressed = open_compressed(against, source)
    with working(f"validating {artifact.name}"):
        verdict = check(artifact, compressed)
    if as_json:
        show_json(verdict.to_json())
    else:
        from edgesparse.report.tables import verdict_table

        show(verdict_table(verdict, limit=None if show_all else SHOWN))
        for note in (verdict.runtime and f"executed by {verdict.runtime}", *verdict.notes):
            show(note)
    if not verdict.ok:
        raise ValidationFailed(str(verdict))
