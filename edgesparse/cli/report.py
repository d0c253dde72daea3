"""``edgesparse report``: one self-contained page about a compressed model."""

from __future__ import annotations

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
@source_option
@force_option
@common
def report(
    model: str,
    output: Path,
    artifacts: tuple[Path, ...],
    source: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a page about the compressed MODEL: budget, comparison, layers, files and their proof.

    The page needs no network and no script, prints well, and follows the reader's light or dark.
    """
    from edgesparse.errors import OutputExists
    from edgesparse.exporting import require_exists, validate
    from edgesparse.report.page import report_page, write_page

    if output.exists() and not force:
        raise OutputExists(f"{output} exists; --force replaces it")
    for artifact in artifacts:
        require_exists(artifact)
    compressed = open_compressed(model, source)
    verdicts = []
    for artifact in artifacts:
        with working(f"validating {artifact.name}"):
            verdicts.append(validate(artifact, compressed))
    write_page(output, report_page(compressed, verdicts))
    if as_json:
        show_json({"path": str(output), "verdicts": [verdict.to_json() for verdict in verdicts]})
    else:
        show(f"wrote {output}")
