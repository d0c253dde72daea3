"""``edgesparse demo``: the whole way with the bundled model, in one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesparse.budget import Budget
from edgesparse.cli import _calibration, _job
from edgesparse.cli._console import remark, show, show_json, working
from edgesparse.cli._options import common, recipe_from
from edgesparse.errors import MissingTool, SourceError, ValidationFailed
from edgesparse.report.words import seconds

if TYPE_CHECKING:
    from edgesparse.exporting import Artifact, Verdict
    from edgesparse.model import CompressedModel
    from edgesparse.report.comparison import Comparison

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "classics-4m"
BUDGET = Budget(file="2.2MB")
CALIBRATION_WINDOWS = 32
PROMPT = "It was a dark evening when"
ARTIFACTS = ("demo.pte", "demo.mlpackage")


@click.command(short_help="Go all the way with the bundled model.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    metavar="DIR",
    help="Directory for everything it writes; replaced.",
)
@common
def demo(output: Path, as_json: bool) -> None:
    """Compress the bundled language model to 2.2 MB, export it twice, prove both files.

    Takes a few minutes on two cores. Half of the weights are removed, the others get 4 bits; the
    table says what that costs, and what as many bytes of dense codes would have cost.
    """
    started = time.monotonic()
    if not MODEL.is_dir():
        raise SourceError("the demo needs the examples of the repository; clone it and run there")
    model = output / "classics-4m"
    compressed, comparison = _compress(model, quiet=as_json)
    proofs = [_prove(compressed, output / name, quiet=as_json) for name in ARTIFACTS]
    text = _continue(compressed)
    elapsed = time.monotonic() - started
    if as_json:
        show_json(
            {
                **_job.summary(compressed, comparison, model),
                "artifacts": [
                    {**artifact.to_json(), "verdict": verdict.to_json()}
                    for artifact, verdict in proofs
                ],
                "text": text,
                "seconds": round(elapsed, 1),
            }
        )
    else:
        show("", text, "", f"all of it is in {output}   {seconds(elapsed)}")
    failed = [str(verdict) for _, verdict in proofs if not verdict.ok]
    if failed:
        raise ValidationFailed("; ".join(failed))


def _compress(path: Path, *, quiet: bool) -> tuple[CompressedModel, Comparison]:
    """Compress, measure, save; print the table."""
    from edgesparse.capture import load
    from edgesparse.planner import plan as make_plan

    recipe = recipe_from({"sparsity": 0.5, "bits": 4, "group_size": 128, "method": "sparsegpt"})
    captured = load(MODEL)
    plan = make_plan(captured, recipe, budget=BUDGET)
    data = _calibration.choose(
        captured, EXAMPLES / "data" / "calibration.txt", EXAMPLES / "data" / "validation.txt"
    )
    if not quiet:
        _job.show_plan(captured, plan, data)
    compressed, comparison = _job.carry_out(
        captured, plan, data, compare=True, windows=CALIBRATION_WINDOWS
    )
    assert comparison is not None
    compressed.save(path, force=True)
    if not quiet:
        _job.show_comparison(comparison)
        _job.show_hints(comparison)
        show("")
    return compressed, comparison


def _prove(compressed: CompressedModel, path: Path, *, quiet: bool) -> tuple[Artifact, Verdict]:
    """Export to the target that the ending of ``path`` names, and validate the file."""
    from edgesparse.exporting import export, validate
    from edgesparse.report.tables import parity_line

    with working(f"exporting {path.name}"):
        artifact = export(compressed, path=path, force=True)
    try:
        with working(f"validating {path.name}"):
            verdict = validate(artifact, compressed)
    except MissingTool as error:  # XNNPACK's kernels come with the runtime, ready to run
        remark(f"{path.name}: {error}; the demo goes on with lowering=xnnpack")
        artifact = export(compressed, path=path, force=True, lowering="xnnpack")
        verdict = validate(artifact, compressed)
    if not quiet:
        show(parity_line(artifact, verdict))
    return artifact, verdict


def _continue(compressed: CompressedModel) -> str:
    from edgesparse.runtime import generate

    return generate(compressed, PROMPT, tokens=60, seed=0)
