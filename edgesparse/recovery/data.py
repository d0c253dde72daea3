"""What recovery trains on: random windows of a text, or batches of ready inputs in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgesparse.calibrate.windows import calibration_batches, digest, read_tokens
from edgesparse.errors import CalibrationError, UsageError
from edgesparse.model import CapturedModel

Batches = Callable[[int], dict[str, Tensor]]
"""Step → batch."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a recovery sees at each step.

    Attributes:
        batches: A pure function of the step, so that a resumed run sees what it would have seen.
        sha256: Digest of the data that batches are made of.
    """

    batches: Batches
    sha256: str

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Return the batch of one step."""
        return self.batches(step)


def draws(
    captured: CapturedModel,
    data: object,
    *,
    window: int,
    batch: int,
    seed: int,
    noise: float = 0.0,
) -> Draw:
    """Return the batches of ``data``: a text file, token ids [tokens], or calibration inputs.

    Args:
        captured: The model, for its tokenizer and the names of its inputs.
        data: A text file, a one-dimensional array of tokens, or anything else that
            ``calibrate.calibration_batches`` takes.
        window: Tokens in a window.
        batch: Windows or examples in a batch.
        seed: Together with the step decides what a batch holds.
        noise: Fraction of the tokens of a text replaced by random ones.

    Raises:
        CalibrationError: Too little data for one window.
        UsageError: ``noise`` for data that is no text.
    """
    if isinstance(data, (str, Path)) and Path(data).suffix != ".npz":
        data = read_tokens(captured, Path(data))
    if isinstance(data, (np.ndarray, Tensor)) and data.ndim == 1:
        tokens = torch.as_tensor(data)
        draw = Draw(
            batches=_windows(captured, tokens, window=window, batch=batch, seed=seed),
            sha256=digest([{"tokens": tokens}]),
        )
        if not noise:
            return draw
        known = captured.config.get("vocab_size")
        vocabulary = known if isinstance(known, int) else int(tokens.max()) + 1
        return replace(draw, batches=_with_noise(draw, noise, vocabulary, seed))
    if noise:
        raise UsageError("noise replaces tokens of a text, and the data is none; leave it out")
    fixed = calibration_batches(captured, data, window=window, seed=seed, batch_size=batch)
    order = np.random.default_rng(seed).permutation(len(fixed))
    return Draw(batches=lambda step: dict(fixed[order[step % len(fixed)]]), sha256=digest(fixed))


def _windows(
    captured: CapturedModel, tokens: Tensor, *, window: int, batch: int, seed: int
) -> Batches:
    """Return random windows, anywhere in the text."""
    if len(tokens) < window:
        raise CalibrationError(
            f"recovery text has {len(tokens)} tokens, fewer than one window of {window}; give a "
            "longer text"
        )
    name = "input_ids"
    if name not in captured.example_inputs and len(captured.example_inputs) == 1:
        name = next(iter(captured.example_inputs))
    offsets = torch.arange(window)

    def draw(step: int) -> dict[str, Tensor]:
        starts = np.random.default_rng((seed, step)).integers(0, len(tokens) - window + 1, batch)
        return {name: tokens[torch.from_numpy(starts)[:, None] + offsets].long()}

    return draw


def _with_noise(draw: Draw, noise: float, vocabulary: int, seed: int) -> Batches:
    """Return ``draw`` with a fraction of all tokens replaced by any of the vocabulary."""

    def noisy(step: int) -> dict[str, Tensor]:
        ((name, tokens),) = draw(step).items()
        generator = np.random.default_rng((seed, step, 1))
        replaced = torch.from_numpy(generator.random(tokens.shape) < noise)
        others = torch.from_numpy(generator.integers(0, vocabulary, tokens.shape))
        return {name: torch.where(replaced, others, tokens)}

    return noisy
