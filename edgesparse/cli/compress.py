"""``edgesparse compress``: plan, prune, quantize, pack, measure, save."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgesparse.budget import Budget, format_size
from edgesparse.cli import _calibration, _job
from edgesparse.cli._console import show, show_json
from edgesparse.cli._options import (
    budget_option,
    common,
    directory_option,
    force_option,
    recipe_from,
    recipe_options,
    target_option,
    text_option,
)


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
@text_option
@click.option("--windows", type=int, help="Windows of text to calibrate on; at most 256 if unset.")
@click.option("--window", default=512, show_default=True, help="Tokens in a window of text.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
@click.option("--device", default="cpu", show_default=True, help="Where the solver runs: cuda, …")
@click.option("--no-compare", is_flag=True, help="Measure nothing, nor the equal-byte alternative.")
@force_option
@common
def compress(
    model: str,
    output: Path,
    calibration: Path | None,
    budget: Budget | None,
    target: str | None,
    text: Path | None,
    windows: int | None,
    window: int,
    seed: int,
    device: str,
    no_compare: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compress MODEL to a directory, and say what that cost.

    MODEL is a Hugging Face directory, a .pt2 file, or package.module:factory. The table compares
    the dense model, this plan, and dense codes of the same bytes, on --text or on the end of the
    calibration text, which is then not calibrated on.
    """
    started = time.monotonic()
    recipe = recipe_from(options)
    from edgesparse.capture import load
    from edgesparse.planner import plan as make_plan
    from edgesparse.store.atomic import refuse_existing
    from edgesparse.store.saving import is_compressed_model
    from edgesparse.store.space import require_space

    refuse_existing(output, force=force, replaceable=is_compressed_model)
    captured = load(model)
    plan = make_plan(captured, recipe, budget=budget, target=target)
    require_space(output, plan.nbytes)
    data = _calibration.choose(
        captured, calibration, text, windows=windows, window=window, seed=seed
    )
    plan = _job.better_plan(
        captured, recipe, plan, data.calibration, window=window, seed=seed, device=device
    )
    if not as_json:
        _job.show_plan(captured, plan, data)
    compressed, comparison = _job.carry_out(
        captured, plan, data, compare=not no_compare,
        windows=windows, window=window, seed=seed, device=device,
    )  # fmt: skip
    compressed.save(output, force=force)
    if as_json:
        show_json(_job.summary(compressed, comparison, output))
        return
    if comparison is not None:
        _job.show_comparison(comparison)
    show(saved_line(output, plan.nbytes, time.monotonic() - started))
    _job.show_hints(comparison, output)


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
