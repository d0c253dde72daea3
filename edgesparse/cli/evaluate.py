"""``edgesparse evaluate``: how far a model is from its dense source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgesparse.cli._console import remark, show, show_json, working
from edgesparse.cli._models import is_artifact, open_model
from edgesparse.cli._options import common, source_option, text_option
from edgesparse.errors import UsageError


@click.command(short_help="Perplexity, KL and agreement against the dense model.")
@click.argument("model")
@text_option
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="NPZ",
    help="Arrays named as the model's arguments, for a model that reads no text.",
)
@click.option("--window", default=512, show_default=True, help="Tokens in a window of text.")
@click.option("--max-windows", type=int, help="Measure only so many windows, from the beginning.")
@source_option
@common
def evaluate(
    model: str,
    text: Path | None,
    inputs: Path | None,
    window: int,
    max_windows: int | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL against the dense model it was made from.

    A language model is measured on --text, in windows without overlap; any other on --inputs, or
    on its own example inputs. A compressed model runs on its packed weights, a .pte or .mlpackage
    of a language model here on this host: its perplexity alone, with the tokenizer beside it or
    of --source DIR.
    """
    if is_artifact(model):
        _score(Path(model), text, source, window, max_windows, as_json=as_json)
        return
    opened = open_model(model, source)
    from edgesparse.calibrate import calibration_batches
    from edgesparse.model import CapturedModel
    from edgesparse.report.tables import evaluation_table, title
    from edgesparse.runtime import evaluate as measure

    captured = opened if isinstance(opened, CapturedModel) else opened.captured
    options: dict[str, Any] = {"window": window, "max_windows": max_windows, "text": text}
    if inputs is not None:
        options["inputs"] = calibration_batches(captured, inputs)
    if captured.task == "causal-lm" and text is None and inputs is None:
        raise UsageError("a language model is measured on a text; give --text FILE")
    with working("evaluating") as progress:
        found = measure(opened, progress=progress, **options)
    if found.note:
        remark(f"note: {found.note}")
    if as_json:
        show_json(found.to_json())
    else:
        show(title(captured), evaluation_table(found))


def _score(
    artifact: Path,
    text: Path | None,
    source: str | None,
    window: int,
    max_windows: int | None,
    *,
    as_json: bool,
) -> None:
    """Show how well an artifact predicts a text."""
    from edgesparse.executing import score_text

    if text is None:
        raise UsageError("an artifact is measured on a text; give --text FILE")
    with working("evaluating") as progress:
        found = score_text(
            artifact, text, tokenizer=source, window=window, max_windows=max_windows,
            progress=progress,
        )  # fmt: skip
    if as_json:
        show_json(found.to_json())
    else:
        windows = f"{found.windows} windows of {window} tokens"
        show(f"{artifact.name}: perplexity {found.perplexity:.3f} on {windows}")
