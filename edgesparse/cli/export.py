"""``edgesparse export``: a compressed model to a target's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.budget import Budget
from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._models import open_compressed
from edgesparse.cli._options import budget_option, common, force_option, source_option
from edgesparse.errors import ExportError

if TYPE_CHECKING:
    from edgesparse.reconcile import Compared


@click.command(short_help="Write a Core ML or ExecuTorch file.")
@click.argument("model")
@click.option("--target", metavar="NAME", help="coreml or executorch; else the ending of -o says.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
@budget_option
@force_option
@click.option("--keep", is_flag=True, help="Keep a file that breaks the budget; still exits 3.")
@click.option(
    "-O", "--option", "options", multiple=True, metavar="KEY=VALUE",
    help="An option of the target's own, such as lowering=xnnpack; see its README.",
)  # fmt: skip
@click.option(
    "--allow-conversion", is_flag=True,
    help="Write weights the target has no form for as plain values; it says which.",
)  # fmt: skip
@click.option("--measure", is_flag=True, help="Run the file and hold its memory against the plan.")
@source_option
@common
def export(
    model: str,
    target: str | None,
    output: Path,
    budget: Budget | None,
    force: bool,
    keep: bool,
    options: tuple[str, ...],
    measure: bool,
    allow_conversion: bool,
    source: str | None,
    as_json: bool,
) -> None:
    """Write the compressed MODEL as a file of a target, and hold it against the budget.

    Without --budget the budget of the plan counts when the plan was made for this target. A file
    over the budget is removed and the exit code is 3.
    """
    from edgesparse.exporting import check_output
    from edgesparse.exporting import export as write
    from edgesparse.reconcile import reconcile

    check_output(target, output, force=force)
    own = dict(_key_and_value(option) for option in options)
    if allow_conversion:
        own["allow_conversion"] = True
    compressed = open_compressed(model, source)
    with working(f"exporting {output.name}"):
        artifact = write(compressed, target, output, budget=budget, force=force, keep=keep, **own)
    memory = measure or bool((budget or compressed.plan.budget).peak)
    compared = () if own else reconcile(compressed, artifact, memory=memory)
    if as_json:
        predicted = [{**asdict(row), "ok": row.ok} for row in compared]
        show_json({**artifact.to_json(), "predicted": predicted})
    else:
        from edgesparse.report.tables import artifact_lines

        show(*artifact_lines(artifact), *map(str, compared))
        again = f" --source {source}" if source else ""
        show(f"prove it with: edgesparse validate {artifact.path} --against {model}{again}")
    if compressed.plan.target == artifact.target:
        _require_predicted(compared)


def _require_predicted(compared: Sequence[Compared]) -> None:
    """Fail where a plan made for this target was wrong about it; the file stays."""
    wrong = [str(row) for row in compared if not row.ok]
    if wrong:
        raise ExportError(f"the prediction was wrong: {'; '.join(wrong)}; the file is kept")


def _key_and_value(text: str) -> tuple[str, bool | int | str]:
    """Read ``key=value``: whole numbers and true or false as such, anything else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise click.BadParameter(f"{text!r}: expected KEY=VALUE", param_hint="--option")
    if value in ("true", "false"):
        return key, value == "true"
    return key, int(value) if value.lstrip("-").isdigit() else value
