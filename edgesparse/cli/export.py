"""``edgesparse export``: a compressed model to a target's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._models import open_compressed
from edgesparse.cli._options import (
    SettingType,
    budget_option,
    common,
    force_option,
    source_option,
)
from edgesparse.errors import ExportError, OutputExists

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel
    from edgesparse.reconcile import Compared
    from edgesparse.verdict import Artifact


@click.command(short_help="Write a Core ML, ExecuTorch or Core AI file.")
@click.argument("model")
@click.option(
    "--target", metavar="NAME", help="coreml, executorch or coreai; else the ending of -o says."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
@budget_option
@force_option
@click.option("--keep", is_flag=True, help="Keep a file that breaks the budget; still exits 3.")
@click.option(
    "-O", "--option", "options", multiple=True, type=SettingType(), metavar="KEY=VALUE",
    help="An option of the target's own, such as lowering=xnnpack; see its README.",
)  # fmt: skip
@click.option(
    "--allow-conversion", is_flag=True,
    help="Write weights the target has no form for as plain values; it says which.",
)  # fmt: skip
@click.option("--measure", is_flag=True, help="Run the file and hold its memory against the plan.")
@click.option(
    "--resume", is_flag=True,
    help="After an interrupted run: a file that is there already is proven, and kept.",
)  # fmt: skip
@source_option
@common
def export(
    model: str,
    target: str | None,
    output: Path,
    budget: Budget | None,
    force: bool,
    keep: bool,
    options: tuple[tuple[str, bool | int | str], ...],
    measure: bool,
    allow_conversion: bool,
    resume: bool,
    source: str | None,
    as_json: bool,
) -> None:
    """Write the compressed MODEL as a file of a target, and hold it against the budget.

    A file is whole or not there, so an interrupted export begins anew; what it left beside the
    output goes. With --resume a whole file is no error: it is validated instead of written again.

    Without --budget the budget of the plan counts when the plan was made for this target. A file
    over the budget is removed and the exit code is 3.
    """
    from edgesparse.exporting import check_output

    check_output(target, output, force=force or resume)
    own = dict(options)
    if allow_conversion:
        own["allow_conversion"] = True
    compressed = open_compressed(model, source)
    if resume and not force and output.exists():
        _require_whole(output, compressed, as_json=as_json)
        return
    artifact, compared = write(
        compressed, target, output, budget=budget, force=force, keep=keep, measure=measure, own=own
    )
    if as_json:
        show_json(written_json(artifact, compared))
    else:
        again = f" --source {source}" if source else ""
        show_written(artifact, compared)
        show(f"prove it with: edgesparse validate {artifact.path} --against {model}{again}")
    require_predicted(compressed, artifact, compared)


def _require_whole(output: Path, compressed: CompressedModel, *, as_json: bool) -> None:
    """Prove the file that an earlier run has written, and say so.

    Raises:
        OutputExists: It is another one.
    """
    from edgesparse.exporting import nbytes_on_disk, validate

    with working(f"validating {output.name}"):
        verdict = validate(output, compressed)
    if not verdict.ok:
        raise OutputExists(
            f"{output} is there and is not this model ({verdict}); --force replaces it"
        )
    if as_json:
        show_json({"path": str(output), "nbytes": nbytes_on_disk(output), "was_there": True})
    else:
        show(f"{output} was whole already: {verdict}")


def write(
    compressed: CompressedModel,
    target: str | None,
    output: Path,
    *,
    budget: Budget | None = None,
    force: bool = False,
    keep: bool = False,
    measure: bool = False,
    own: Mapping[str, bool | int | str] | None = None,
) -> tuple[Artifact, tuple[Compared, ...]]:
    """Export, and return the artifact and what was predicted of it beside what it is.

    Nothing is predicted for a target's ``own`` options. Memory is measured when asked for, or when
    the budget limits it. Other arguments and errors are those of ``edgesparse.export``.
    """
    from edgesparse.exporting import export as write_file
    from edgesparse.reconcile import reconcile

    own = own or {}
    with working(f"exporting {output.name}"):
        artifact = write_file(
            compressed, target, output, budget=budget, force=force, keep=keep, **own
        )
    memory = measure or bool((budget or compressed.plan.budget).peak)
    return artifact, () if own else reconcile(compressed, artifact, memory=memory)


def written_json(artifact: Artifact, compared: Sequence[Compared]) -> dict[str, Any]:
    """Return the JSON form of an export."""
    return {**artifact.to_json(), "predicted": [{**asdict(r), "ok": r.ok} for r in compared]}


def show_written(artifact: Artifact, compared: Sequence[Compared]) -> None:
    """Print where the file is, and its sizes beside their predictions."""
    from edgesparse.report.tables import artifact_lines

    show(*artifact_lines(artifact), *map(str, compared))


def require_predicted(
    compressed: CompressedModel, artifact: Artifact, compared: Sequence[Compared]
) -> None:
    """Fail where a plan made for this target was wrong about it; the file stays.

    Raises:
        ExportError: It was.
    """
    wrong = [str(row) for row in compared if not row.ok]
    if wrong and compressed.plan.target == artifact.target:
        raise ExportError(f"the prediction was wrong: {'; '.join(wrong)}; the file is kept")
