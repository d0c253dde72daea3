"""Measure what compression changed: perplexity, KL divergence and agreement with the dense model.

A text is cut into windows without overlap; each window of ``T`` tokens gives ``T - 1`` predictions.
Models without a vocabulary are compared by their outputs on given inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.errors import EdgesparseError, SourceError, UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.runtime.forward import floating_tensors, logits
from edgesparse.runtime.modules import build_packed
from edgesparse.runtime.score import Tally
from edgesparse.runtime.text import read_text, token_windows

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured; None where it does not apply or the dense model was not available.

    Attributes:
        nbytes: Bytes of all tensors of the model, packed and kept.
        bits_per_weight: The same per parameter.
        windows: Windows of text, or inputs, measured.
        tokens: Predictions scored.
        perplexity: exp of the mean negative log-likelihood per prediction.
        dense_perplexity: The same of the dense model.
        kl: Mean KL(dense‖model) per prediction, in nats.
        top1_agreement: Fraction of predictions whose likeliest token is the dense model's.
        output_error: ``|Y - Y_dense| / |Y_dense|`` over all outputs, for models without text.
        cosine: Cosine of the two, over all outputs.
        note: What could not be measured, and why.
    """

    nbytes: int
    bits_per_weight: float
    windows: int
    tokens: int = 0
    perplexity: float | None = None
    dense_perplexity: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    output_error: float | None = None
    cosine: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Perplexity over the dense model's."""
        if self.perplexity is None or self.dense_perplexity is None:
            return None
        return self.perplexity / self.dense_perplexity

    def to_json(self) -> dict[str, Any]:
        """Return every field and the ratio."""
        return {**asdict(self), "ratio": self.ratio}


def evaluate(
    model: CapturedModel | CompressedModel,
    *,
    text: str | Path | None = None,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    window: int = 512,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model, compressed or dense, against its dense source.

    Args:
        model: A compressed model runs on its packed weights; a captured one is its own reference.
        text: Path of a UTF-8 text, for language models.
        inputs: Keyword arguments of forward passes, for any model; the example inputs when
            neither is given.
        window: Tokens in a window of text.
        max_windows: Stop after so many windows, from the beginning; None measures all.
        progress: Called with (windows done, windows in all).

    Raises:
        UsageError: Both text and inputs, text for a model that is no language model, or a window
            that cannot hold a prediction.
        SourceError: The text is missing, not UTF-8 or too short, or the model's outputs are not
            finite.
    """
    return compare([model], text=text, inputs=inputs, window=window, max_windows=max_windows,
                   progress=progress)[0]  # fmt: skip


def compare(
    models: Sequence[CapturedModel | CompressedModel],
    *,
    text: str | Path | None = None,
    tokens: Tensor | None = None,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    window: int = 512,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure several models of one source with a single pass of the dense model.

    Arguments and errors are those of ``evaluate``; ``tokens`` are ready windows in place of a text,
    int64 of shape (windows, tokens).
    """
    captured = _captured(models[0])
    if sum(given is not None for given in (text, tokens, inputs)) > 1:
        raise UsageError("give either a text, tokens or inputs")
    modules = [_module(model) for model in models]
    dense, note = _dense(models[0])
    if text is None and tokens is None:
        chosen = list(inputs) if inputs is not None else [captured.example_inputs]
        outcomes = _compare_outputs(dense, modules, chosen)
    else:
        windows = _windows(captured, text, window, max_windows) if text is not None else tokens
        assert windows is not None
        outcomes = _compare_text(captured, dense, modules, windows, progress)
    return [
        replace(outcome, note=note, nbytes=model.nbytes,
                bits_per_weight=8 * model.nbytes / captured.num_parameters)
        for model, outcome in zip(models, outcomes, strict=True)
    ]  # fmt: skip


def _captured(model: CapturedModel | CompressedModel) -> CapturedModel:
    return model if isinstance(model, CapturedModel) else model.captured


def _module(model: CapturedModel | CompressedModel) -> nn.Module | None:
    """Return a module to run, or None for the dense model itself, which runs anyway."""
    return None if isinstance(model, CapturedModel) else build_packed(model)


def _dense(model: CapturedModel | CompressedModel) -> tuple[nn.Module | None, str]:
    """Return the dense module in float32, or None and why a saved model has none."""
    try:
        return _captured(model).loader().float().eval(), ""
    except EdgesparseError as error:
        if isinstance(model, CapturedModel):
            raise
        return None, f"no comparison with the dense model: {error}"


def _windows(
    captured: CapturedModel, text: str | Path, window: int, max_windows: int | None
) -> Tensor:
    """Return the windows of the text, checked against what the model can take."""
    if captured.task != "causal-lm":
        raise UsageError(f"{captured.name} predicts no next token; measure it with inputs")
    longest = captured.config.get("max_position_embeddings")
    if window < 2 or (isinstance(longest, int) and window > longest):
        raise UsageError(
            f"window is {window} tokens; expected at least 2"
            + (f" and at most the model's context of {longest}" if longest else "")
        )
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"max_windows is {max_windows}, expected at least 1")
    windows = token_windows(captured, read_text(text), window=window, name=str(text))
    return windows[:max_windows]


def _compare_text(
    captured: CapturedModel,
    dense: nn.Module | None,
    modules: Sequence[nn.Module | None],
    windows: Tensor,
    progress: Progress | None,
) -> list[Evaluation]:
    """Run every window through the dense and every other module, keeping only sums."""
    tallies = [Tally() for _ in modules]
    for done, tokens in enumerate(windows):
        reference = None if dense is None else logits(dense, captured, tokens[None])[0]
        for tally, module in zip(tallies, modules, strict=True):
            own = reference if module is None else logits(module, captured, tokens[None])[0]
            assert own is not None, "a captured model without its dense module"
            if not torch.isfinite(own).all():
                raise SourceError(
                    f"{captured.name}: the logits of window {done} are not finite; look for NaN "
                    "or infinite weights with `edgesparse inspect`"
                )
            tally.add(tokens, own, reference)
        if progress is not None:
            progress(done + 1, len(windows))
    return [
        Evaluation(nbytes=0, bits_per_weight=0, windows=len(windows), tokens=tally.count,
                   **tally.means(compared=dense is not None))
        for tally in tallies
    ]  # fmt: skip


def _compare_outputs(
    dense: nn.Module | None,
    modules: Sequence[nn.Module | None],
    inputs: Sequence[Mapping[str, Any]],
) -> list[Evaluation]:
    """Compare all floating outputs, as one long vector for each model."""
    if dense is None:
        return [Evaluation(nbytes=0, bits_per_weight=0, windows=len(inputs)) for _ in modules]
    expected = _outputs(dense, inputs)
    evaluations = []
    for module in modules:
        found = expected if module is None else _outputs(module, inputs)
        norms = float(found.norm() * expected.norm())
        evaluations.append(
            Evaluation(
                nbytes=0,
                bits_per_weight=0,
                windows=len(inputs),
                output_error=float((found - expected).norm() / expected.norm()),
                cosine=float(found @ expected) / norms if norms else 0.0,
            )
        )
    return evaluations


def _outputs(module: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return all floating outputs in one vector, float64 so that long sums stay exact."""
    with torch.inference_mode():
        parts = [
            tensor.double().flatten() for kwargs in inputs for tensor in
            floating_tensors(module(**kwargs))
        ]  # fmt: skip
    if not parts:
        raise SourceError("the model returned no floating tensor to compare")
    return torch.cat(parts)
