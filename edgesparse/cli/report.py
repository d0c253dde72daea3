"""``edgesparse report``: one self-contained page about a compressed model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._models import open_compressed
from edgesparse.cli._options import common, force_option, source_option


@click.command(short_help="One HTML page: bytes, accuracy, layers, proofs.")
@click.argument("model")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="HTML",
    help="File to write.",
)
@click.option(
    "--artifact", "artifacts", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="An exported file to validate and show; may be given more than once.",
)  # fmt: skip
@click.option(
    "--record", "records", type=click.Path(path_type=Path), multiple=True, metavar="JSON",
    help="What edgesparse device run recorded of such a file; may be given more than once.",
)  # fmt: skip
@source_option
@force_option
@common
def report(
    model: str,
    output: Path,
    artifacts: tuple[Path, ...],
    records: tuple[Path, ...],
    source: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a page about the compressed MODEL: budget, comparison, layers, files, proofs, devices.

    The page needs no network and no script, prints well, and follows the reader's light or dark.
    """
    from edgesparse.errors import OutputExists
    from edgesparse.exporting import require_exists, validate
    from edgesparse.report.page import report_page, write_page
    from edgesparse.report.records import read_run, require_same_file

    if output.exists() and not force:
        raise OutputExists(f"{output} exists; --force replaces it")
    for artifact in artifacts:
        require_exists(artifact)
    runs = [read_run(record) for record in records]
    require_same_file(runs, artifacts)
    compressed = open_compressed(model, source)
    verdicts = []
    for artifact in artifacts:
        with working(f"validating {artifact.name}"):
            verdicts.append(validate(artifact, compressed))
    write_page(output, report_page(compressed, verdicts, runs))
    if as_json:
        show_json(
            {
                "path": str(output),
                "verdicts": [verdict.to_json() for verdict in verdicts],
                "device_runs": [asdict(run) for run in runs],
            }
        )
    else:
        show(f"wrote {output}")
