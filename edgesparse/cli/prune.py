"""``edgesparse prune``: cut whole parts out of a model and write the smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.budget import format_size
from edgesparse.cli._console import show, show_json, working
from edgesparse.cli._options import common, force_option, text_option
from edgesparse.cli._training import each_step
from edgesparse.errors import OutputExists, UsageError

if TYPE_CHECKING:
    from edgesparse.model import CapturedModel


@click.command(short_help="Cut neurons, heads, layers or experts; a smaller dense model.")
@click.argument("model")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="PATH",
    help="Model directory to write; a FILE.pt2 for a model that is not from transformers.",
)  # fmt: skip
@click.option(
    "--ffn", "--channels", "channels", default=0.0, metavar="SHARE",
    help="Share of the feed-forward neurons and convolution channels that goes, 0.25 say.",
)  # fmt: skip
@click.option("--heads", default=0.0, metavar="SHARE", help="Share of the attention heads.")
@click.option("--width", default=0.0, metavar="SHARE", help="Share of the residual stream.")
@click.option("--layers", default=0, metavar="N", help="Whole layers.")
@click.option("--experts", default=0, metavar="N", help="Experts of every mixture.")
@click.option("--merge", "merged", default=0, metavar="N", help="Experts that move into others.")
@click.option("--top-k", type=int, metavar="N", help="Experts a token is sent to from now on.")
@click.option("--importance", default="wanda", show_default=True, help="wanda, taylor, magnitude.")
@click.option("--multiple", default=8, show_default=True, help="Sizes are multiples of this.")
@click.option("--no-refit", is_flag=True, help="Leave the weights that read the parts as they are.")
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="FILE",
    help="Text for a language model, else an .npz of arrays named as the model's arguments.",
)  # fmt: skip
@click.option("--windows", default=32, show_default=True, help="Windows of text to judge by.")
@click.option("--window", default=512, show_default=True, help="Tokens in a window of text.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same result.")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE",
    help="Text to train on afterwards, with the whole model as the teacher.",
)  # fmt: skip
@click.option("--minutes", type=float, help="Time for training on --data.")
@text_option
@force_option
@common
def prune(
    model: str,
    output: Path,
    channels: float,
    heads: float,
    width: float,
    layers: int,
    experts: int,
    merged: int,
    top_k: int | None,
    importance: str,
    multiple: int,
    no_refit: bool,
    calibration: Path | None,
    windows: int,
    window: int,
    seed: int,
    data: Path | None,
    minutes: float | None,
    text: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Cut whole parts out of MODEL and write the smaller model, dense and of the same kind.

    What matters least on --calibration goes: --ffn 0.25 a quarter of the feed-forward neurons,
    --layers 2 two layers, and so on. The result is an ordinary model directory that every other
    verb takes, compress first of all.
    """
    if (data is None) != (minutes is None):
        raise UsageError("--data and --minutes belong together")
    if output.exists() and not force:
        raise OutputExists(f"{output} exists; --force replaces it")
    from edgesparse.structured.pruning import Cuts, prune_structured

    cuts = Cuts(
        channels=channels, heads=heads, width=width, layers=layers, experts=experts,
        merged=merged, top_k=top_k,
    )  # fmt: skip
    from edgesparse.capture import load
    from edgesparse.store.space import require_space

    captured = load(model)
    with working("cutting"):
        small = prune_structured(
            captured, cuts, calibration=calibration, importance=importance, multiple=multiple,
            refit=not no_refit, windows=windows, window=window, seed=seed,
        )  # fmt: skip
    require_space(output, small.nbytes)
    if data is not None and minutes is not None:
        small = _healed(small, captured, data, minutes, window, seed)
    _write(small, output, force=force)
    found = _measured(captured, small, text, window)
    if as_json:
        show_json({"path": str(output), **found})
        return
    _show(captured, found, output)


def _healed(
    small: CapturedModel, whole: CapturedModel, data: Path, minutes: float, window: int, seed: int
) -> CapturedModel:
    from edgesparse.structured.healing import heal

    with working("training") as step:
        return heal(
            small, whole, data=data, minutes=minutes, window=window, seed=seed,
            progress=each_step(step, says_every=10),
        )  # fmt: skip


def _write(small: CapturedModel, output: Path, *, force: bool) -> None:
    """Write a model directory, or a program for what is no transformers model."""
    if output.suffix == ".pt2":
        from edgesparse.structured.writing import write_program

        write_program(small, output, force=force)
        return
    from edgesparse.structured.writing import write_model

    write_model(small, output, force=force)


def _measured(
    captured: CapturedModel, small: CapturedModel, text: Path | None, window: int
) -> dict[str, Any]:
    """Return sizes before and after, and perplexities where there is a text."""
    found: dict[str, Any] = {
        "parameters": small.num_parameters, "dense_parameters": captured.num_parameters,
        "nbytes": small.nbytes, "dense_nbytes": captured.nbytes,
    }  # fmt: skip
    if text is not None:
        from edgesparse.runtime import evaluate

        with working("measuring") as step:
            found["perplexity"] = evaluate(
                small, text=text, window=window, progress=step
            ).perplexity
            found["dense_perplexity"] = evaluate(
                captured, text=text, window=window, progress=step
            ).perplexity
    return found


def _show(captured: CapturedModel, found: dict[str, Any], output: Path) -> None:
    from edgesparse.report.tables import title

    share = found["parameters"] / found["dense_parameters"]
    show(title(captured))
    show(
        f"left  {found['parameters'] / 1e6:.2f} M parameters, {share:.1%}, "
        f"{format_size(found['nbytes'])} of {format_size(found['dense_nbytes'])}"
    )
    if "perplexity" in found:
        show(f"perplexity  {found['perplexity']:.2f}, before {found['dense_perplexity']:.2f}")
    show(f"saved {output}")
