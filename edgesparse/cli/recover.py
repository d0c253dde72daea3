"""``edgesparse recover``: win back what compression lost, with the same masks and bytes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from edgesparse.cli._console import command_line, show, show_json, working
from edgesparse.cli._models import open_compressed
from edgesparse.cli._options import (
    common,
    deflate_option,
    directory_option,
    force_option,
    source_option,
)
from edgesparse.cli._training import each_step
from edgesparse.cli.compress import check_free, saved_line
from edgesparse.errors import UsageError
from edgesparse.store.space import require_space


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
@click.option("--steps", type=int, help="Optimizer steps allowed.")
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
@click.option("--seed", default=0, show_default=True, help="Decides the windows.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@source_option
@deflate_option
@force_option
@common
def recover(
    model: str,
    output: Path,
    data: Path,
    minutes: float | None,
    steps: int | None,
    validation: Path | None,
    checkpoint: Path | None,
    gradual: float,
    noise: float,
    lr: float,
    batch: int,
    accumulate: int,
    hidden: float,
    window: int,
    seed: int,
    device: str,
    source: str | None,
    deflate: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Distil the dense model into the compressed MODEL: same patterns and bytes, better values.

    Started by torchrun, several processes share the work, --batch examples each.

    At least one of --minutes and --steps is needed. What is reported afterwards by evaluate is
    what ships: the recovered values are packed again.
    """
    if minutes is None and steps is None:
        raise UsageError("recover needs a limit: --minutes 10, or --steps 1000")
    started = time.monotonic()
    check_free(output, force=force)
    compressed = open_compressed(model, source)
    require_space(output, compressed.nbytes)
    from edgesparse.calibrate.team import joined
    from edgesparse.recovery import recover as distil

    with joined(device) as (team, own_device), working("recovering") as step:
        recovered = distil(
            compressed, data=data, minutes=minutes, steps=steps, validation=validation,
            gradual=gradual, noise=noise, lr=lr, batch=batch, accumulate=accumulate, hidden=hidden,
            checkpoint=checkpoint, window=window, seed=seed, device=own_device, team=team,
            progress=each_step(step),
        )  # fmt: skip
    if not team.leads:
        return
    # What compress measured is no longer true of these values.
    kept = {k: v for k, v in recovered.metadata.items() if k != "evaluation"}
    recovered = replace(recovered, metadata={**kept, "command": command_line()})
    recovered.save(output, force=force, deflated=deflate)
    if as_json:
        show_json({"path": str(output), "nbytes": recovered.nbytes})
    else:
        predicted = recovered.plan.download_nbytes if deflate else recovered.plan.nbytes
        elapsed = time.monotonic() - started
        show(saved_line(output, predicted or recovered.plan.nbytes, elapsed))
        show(f"measure it with: edgesparse evaluate {output} --text …")
