"""``edgesparse recover``: win back what compression lost, with the same masks and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgesparse.cli._console import command_line, show, show_json, working
from edgesparse.cli._models import open_compressed
from edgesparse.cli._options import (
    common,
    deflate_option,
    directory_option,
    force_option,
    source_option,
)
from edgesparse.cli._training import each_block, each_step
from edgesparse.cli.compress import check_free, saved_line
from edgesparse.errors import UsageError
from edgesparse.store.space import require_space

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel


@click.command(short_help="Train the kept values against the dense model.")
@click.argument("model")
@directory_option
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Text to train on, or an .npz of arrays named as the model's arguments.",
)
@click.option("--minutes", type=float, help="Time allowed.")
@click.option("--steps", type=int, help="Optimizer steps allowed; with --blockwise for each block.")
@click.option(
    "--blockwise", is_flag=True,
    help="Train one block at a time against the dense block: for models too large to train whole.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the blocks of an earlier --blockwise run.")
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Held-out text: the best state on it is kept, and training ends when it stops improving.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Save the state here every minute, and go on from it.",
)
@click.option(
    "--gradual",
    default=0.0,
    show_default=True,
    help="Find new masks of the same patterns in this part of the allowance, 0.5 say: better for "
    "masks of blocks, such as 16x1.",
)
@click.option(
    "--noise",
    default=0.0,
    show_default=True,
    help="Replace this part of the tokens by random ones, 0.1 say: better where the dense model "
    "was trained on this very text.",
)
@click.option(
    "--lr", default=8e-4, show_default=True, help="Highest learning rate; 2e-3 where much is lost."
)
@click.option("--batch", default=8, show_default=True, help="Windows or examples at once.")
@click.option("--accumulate", default=1, show_default=True, help="Batches in one step.")
@click.option(
    "--hidden", default=0.0, show_default=True,
    help="Weight of the distance of hidden tensors, 1 say: for encoders and convolutions.",
)  # fmt: skip
@click.option("--window", default=512, show_default=True, help="Tokens in a window of text.")
@click.option(
    "--windows", default=64, show_default=True, help="Windows of text used in all by --blockwise."
)
@click.option("--seed", default=0, show_default=True, help="Decides the windows.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@source_option
@deflate_option
@force_option
@common
def recover(
    model: str,
    output: Path,
    steps: int | None,
    minutes: float | None,
    blockwise: bool,
    windows: int,
    resume: bool,
    data: Path,
    lr: float,
    batch: int,
    window: int,
    seed: int,
    device: str,
    source: str | None,
    deflate: bool,
    force: bool,
    as_json: bool,
    **whole: Any,
) -> None:
    """Distil the dense model into the compressed MODEL: same patterns and bytes, better values.

    Started by torchrun, several processes share the work, --batch examples each.

    At least one of --minutes and --steps is needed. What is reported afterwards by evaluate is
    what ships: the recovered values are packed again.

    With --blockwise finished blocks are kept beside the output until it is saved, and what was
    interrupted goes on with --resume; without, with its --checkpoint.
    """
    _require_of_kind(("minutes", *whole) if blockwise else ("windows", "resume"), blockwise)
    if steps is None and (blockwise or minutes is None):
        limits = "--steps 200, for each block" if blockwise else "--minutes 10, or --steps 1000"
        raise UsageError(f"recover needs a limit: {limits}")
    started = time.monotonic()
    check_free(output, force=force)
    compressed = open_compressed(model, source)
    # Finished blocks lie beside the result.
    require_space(output, (2 if blockwise else 1) * compressed.nbytes)
    from edgesparse.calibrate.team import joined
    from edgesparse.journal.beside import kept
    from edgesparse.recovery import recover as distil
    from edgesparse.recovery import recover_blockwise

    options: dict[str, Any] = {
        "data": data, "steps": steps, "lr": lr, "batch": batch, "window": window, "seed": seed,
    }  # fmt: skip
    with joined(device) as (team, own_device), working("recovering") as step:
        if blockwise:
            if team.size > 1:
                raise UsageError("--blockwise works in one process; start it without torchrun")
            with kept(output, team, resume=resume, force=force) as at:
                recovered = recover_blockwise(
                    compressed, **options, windows=windows, device=own_device, journal=at.journal,
                    progress=each_block(step),
                )  # fmt: skip
                _save(recovered, output, force=force, deflate=deflate)
                at.is_saved = True
        else:
            recovered = distil(
                compressed, **options, **whole, minutes=minutes, device=own_device, team=team,
                progress=each_step(step),
            )  # fmt: skip
            if not team.leads:
                return
            _save(recovered, output, force=force, deflate=deflate)
    if as_json:
        show_json({"path": str(output), "nbytes": recovered.nbytes})
    else:
        predicted = recovered.plan.download_nbytes if deflate else recovered.plan.nbytes
        elapsed = time.monotonic() - started
        show(saved_line(output, predicted or recovered.plan.nbytes, elapsed))
        show(f"measure it with: edgesparse evaluate {output} --text …")


def _require_of_kind(others: Iterable[str], blockwise: bool) -> None:
    """Refuse the options of the other kind of training.

    Raises:
        UsageError: One was given.
    """
    context = click.get_current_context()
    for name in others:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            where = "without" if blockwise else "with"
            raise UsageError(f"--{name} goes {where} --blockwise")


def _save(recovered: CompressedModel, output: Path, *, force: bool, deflate: bool) -> None:
    """Save the model without what compress measured: it is no longer true of these values."""
    metadata = {k: v for k, v in recovered.metadata.items() if k != "evaluation"}
    metadata["command"] = command_line()
    replace(recovered, metadata=metadata).save(output, force=force, deflated=deflate)
