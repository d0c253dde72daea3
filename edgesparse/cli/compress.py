"""``edgesparse compress``: plan, prune, quantize, pack, measure, save."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgesparse.budget import Budget, format_size
from edgesparse.cli import _job
from edgesparse.cli import _preparing as preparing
from edgesparse.cli._console import remark, show, show_json
from edgesparse.cli._options import (
    allow_option,
    budget_option,
    common,
    deflate_option,
    directory_option,
    force_option,
    opened,
    planned_option,
    recipe_from,
    recipe_options,
    target_option,
    text_option,
)
from edgesparse.cli.export import require_predicted, show_written, write, written_json


@click.command(short_help="Plan, prune, quantize, pack, measure, save.")
@click.argument("model")
@directory_option
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text for a language model, else an .npz of arrays named as the model's arguments.",
)
@recipe_options
@budget_option
@target_option
@planned_option
@allow_option
@click.option(
    "--recover", "minutes", type=float, metavar="MINUTES",
    help="Then train for so long on the calibration, with the dense model as the teacher.",
)  # fmt: skip
@text_option
@click.option("--windows", type=int, help="Windows of text to calibrate on; at most 256 if unset.")
@click.option("--window", default=512, show_default=True, help="Tokens in a window of text.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
@click.option("--device", default="cpu", show_default=True, help="Where the solver runs: cuda, …")
@click.option(
    "--scale-activations", "scales_activations", is_flag=True,
    help="Scale columns by their inputs before rounding (AWQ); for --quantizer rtn.",
)  # fmt: skip
@click.option(
    "--allocation", metavar="NAME",
    help="How layers share the sparsity: uniform, owl or hessian (most for what matters least).",
)  # fmt: skip
@click.option("--memory-limit", "limit", metavar="SIZE", help="Memory this process may hold: 3GB.")
@click.option("--resume", is_flag=True, help="Go on with the finished layers of an earlier run.")
@click.option("--no-compare", is_flag=True, help="Measure nothing, nor the equal-byte alternative.")
@click.option(
    "--export", "artifact", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the target's file too, and hold its size and memory against the plan.",
)  # fmt: skip
@deflate_option
@force_option
@common
def compress(
    model: str,
    output: Path,
    calibration: Path | None,
    budget: Budget | None,
    target: str | None,
    settings: tuple[tuple[str, Any], ...],
    allow: tuple[str, ...],
    minutes: float | None,
    text: Path | None,
    windows: int | None,
    window: int,
    seed: int,
    device: str,
    allocation: str | None,
    scales_activations: bool,
    limit: str | None,
    resume: bool,
    no_compare: bool,
    artifact: Path | None,
    deflate: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compress MODEL to a directory, and say what that cost.

    MODEL is a Hugging Face directory, a .pt2 file, or package.module:factory. The table compares
    the dense model, this plan, and dense codes of the same bytes, on --text or on the end of the
    calibration text, which is then not calibrated on.

    Finished layers are kept beside the output until it is saved: what is interrupted, by whatever,
    goes on with --resume. Started by torchrun, several processes share the work.
    """
    from edgesparse.budget import parse_size
    from edgesparse.planner.hopeless import refuse_hopeless

    started = time.monotonic()
    recipe, cuts_parts = opened(recipe_from(options), allow)
    memory_limit = None if limit is None else parse_size(limit)
    check_free(output, force=force)
    if artifact is not None:
        from edgesparse.exporting import check_output

        target = check_output(target, artifact, force=force)
    if not cuts_parts:
        refuse_hopeless(model, recipe, budget, target)
    from edgesparse.calibrate.team import joined
    from edgesparse.journal.beside import kept

    with joined(device) as (team, own_device), kept(output, team, resume=resume, force=force) as at:
        preparing.require_alone(team, cuts_parts=cuts_parts, recovers=minutes is not None)
        whole, captured = preparing.opened(
            model, recipe, cuts_parts=cuts_parts, budget=budget, target=target,
            settings=dict(settings), text=text, calibration=calibration, output=output,
            force=force or resume, windows=windows, window=window, seed=seed,
        )  # fmt: skip
        captured, plan, data = preparing.prepared(
            captured, recipe, at.journal, budget=budget, target=target, settings=dict(settings),
            calibration=calibration, text=text, output=output, team=team, memory_limit=memory_limit,
            windows=windows, window=window, seed=seed, device=own_device, allocation=allocation,
        )  # fmt: skip
        can_measure = preparing.can_measure(captured, memory_limit)
        if not can_measure and team.leads:
            remark("not measured: within this memory limit the dense model cannot run whole")
        if team.leads and not as_json:
            _job.show_plan(captured, plan, data)
        compressed, comparison = _job.carry_out(
            captured, plan, data, compare=not no_compare and can_measure, dense=whole,
            minutes=minutes,
            windows=windows, window=window, seed=seed, device=own_device,
            journal=at.journal, memory_limit=memory_limit, team=team,
            scales_activations=scales_activations,
        )  # fmt: skip
        if not team.leads:
            return
        compressed.save(output, force=force, deflated=deflate)
        at.is_saved = True
    made = None if artifact is None else write(compressed, target, artifact, force=force)
    if as_json:
        written = {"artifact": written_json(*made)} if made else {}
        show_json({**_job.summary(compressed, comparison, output), **written})
    else:
        if comparison is not None:
            _job.show_comparison(comparison)
        predicted = plan.download_nbytes if deflate else plan.nbytes
        show(saved_line(output, predicted or plan.nbytes, time.monotonic() - started))
        if made:
            show_written(*made)
        _job.show_hints(comparison, output)
    if made:
        require_predicted(compressed, *made)


def check_free(output: Path, *, force: bool) -> None:
    """Refuse an output that is in the way before any work is done for it.

    Raises:
        OutputExists: It is there, and ``force`` is not set or it is no compressed model.
    """
    from edgesparse.store.atomic import refuse_existing
    from edgesparse.store.saving import is_compressed_model

    refuse_existing(output, force=force, replaceable=is_compressed_model)


def saved_line(output: Path, predicted: int, elapsed: float) -> str:
    """Return where the model is, and how its bytes compare with what was planned."""
    from edgesparse.report.words import seconds

    weights = (output / "weights.safetensors").stat().st_size
    return (
        f"saved {output}   weights {format_size(weights)} (predicted {format_size(predicted)})   "
        f"{seconds(elapsed)}"
    )
