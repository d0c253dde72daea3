"""``edgesparse search``: several plans carried out and measured in parallel; the front is kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.budget import format_size
from edgesparse.cli._console import remark, show, show_json
from edgesparse.cli._options import common, target_option, text_option
from edgesparse.errors import UsageError

if TYPE_CHECKING:
    from edgesparse.search import Point


@click.command(short_help="Several plans in parallel, measured; the front of size and loss.")
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the compressed models; a search that was stopped goes on from it.",
)  # fmt: skip
@click.option(
    "--budgets", required=True, metavar="SIZES", help="File sizes to reach: 20MB,14MB,11MB."
)
@click.option(
    "--calibration", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="As for compress.",
)  # fmt: skip
@text_option
@target_option
@click.option("--windows", type=int, help="Windows of text to calibrate on.")
@click.option("--jobs", default=2, show_default=True, help="Processes at a time.")
@click.option("--no-dense", is_flag=True, help="Leave out the plans without sparsity.")
@common
def search(
    model: str,
    output: Path,
    budgets: str,
    calibration: Path,
    text: Path | None,
    target: str | None,
    windows: int | None,
    jobs: int,
    no_dense: bool,
    as_json: bool,
) -> None:
    """Compress MODEL to every budget, with and without sparsity, and say which are worth it.

    Each point is a compress of its own, in a process of its own, and stays in DIR. What is there
    already is not done again.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, expected at least 1")
    from edgesparse.budget import parse_size
    from edgesparse.search import front_of
    from edgesparse.search import search as carry_out

    shared = [model, "--calibration", str(calibration)]
    for name, value in (("--text", text), ("--target", target), ("--windows", windows)):
        shared += [] if value is None else [name, str(value)]
    points = []
    for size in dict.fromkeys(part.strip() for part in budgets.split(",")):
        parse_size(size)  # refuses what is none before anything runs
        points.append((size, [*shared, "--budget", f"file={size}"]))
        if not no_dense:
            points.append((f"{size}-dense", [*shared, "--budget", f"file={size}", "--sparsity=0"]))
    found = carry_out(points, output, jobs=jobs, done=_say)
    front = front_of(found)
    if as_json:
        show_json({"points": [asdict(p) for p in found], "front": [p.name for p in front]})
    else:
        _show(found, front)
    if all(point.error for point in found):
        raise UsageError(f"no point could be made; the first says: {found[0].error}")


def _say(point: Point) -> None:
    remark(f"{point.name}: {point.error or 'done'}")


def _show(found: list[Point], front: list[Point]) -> None:
    from edgesparse.report.tables import columns

    table = columns("plan", "bytes", "perplexity", "loss", "front", left=1)
    for point in found:
        table.add_row(
            point.name,
            "–" if point.nbytes is None else format_size(point.nbytes),
            "–" if point.perplexity is None else f"{point.perplexity:.2f}",
            point.error[:60] if point.loss is None else f"{point.loss:.4f}",
            "yes" if point in front else "",
        )
    show(table)
