"""Which inputs a model is calibrated on, and which it is then measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesparse.errors import CalibrationError, UsageError

if TYPE_CHECKING:
    import torch

    from edgesparse.model import CapturedModel

HELD_OUT_SHARE = 8  # one window in so many is kept for measuring
MOST_MEASURED = 32  # windows: three models run on each
RANDOM_EXAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Data:
    """Inputs for one compression.

    Attributes:
        calibration: What ``compress`` takes.
        calibrated_on: The same in words.
        measure: Options of ``edgesparse.runtime.compare``.
        measured_on: The same in words.
    """

    calibration: object
    calibrated_on: str
    measure: Mapping[str, Any] = field(repr=False)
    measured_on: str


def choose(
    captured: CapturedModel,
    calibration: Path | None,
    text: Path | None,
    *,
    windows: int | None = None,
    window: int = 512,
    seed: int = 0,
) -> Data:
    """Decide what to calibrate and what to measure on; never on the same text.

    Raises:
        UsageError: A language model without calibration text.
        CalibrationError: Data that cannot be read or is too short.
    """
    if captured.task != "causal-lm":
        return _arrays(captured, calibration, windows or RANDOM_EXAMPLES, seed)
    if calibration is None:
        raise UsageError(
            "a language model is calibrated on a text like those it will see; give "
            "--calibration FILE"
        )
    if calibration.suffix == ".npz":
        return _arrays(captured, calibration, windows or RANDOM_EXAMPLES, seed)
    return _text(captured, calibration, text, windows=windows, window=window)


def _text(
    captured: CapturedModel,
    calibration: Path,
    text: Path | None,
    *,
    windows: int | None,
    window: int,
) -> Data:
    from edgesparse.calibrate.windows import MIN_WINDOWS, read_tokens
    from edgesparse.runtime.text import read_text, token_windows

    tokens = read_tokens(captured, calibration)
    if text is not None:
        measured = token_windows(captured, read_text(text), window=window, name=str(text))
        measured = measured[:MOST_MEASURED]
        return Data(
            calibration=tokens,
            calibrated_on=calibration.name,
            measure={"tokens": measured},
            measured_on=f"the first {measured.numel():,} tokens of {text.name}",
        )
    available = len(tokens) // window
    held_out = max(1, min(MOST_MEASURED, available // HELD_OUT_SHARE))
    if available - held_out < (windows or MIN_WINDOWS):
        raise CalibrationError(
            f"{calibration} has {len(tokens)} tokens; {windows or MIN_WINDOWS} windows of {window} "
            f"to calibrate on and {held_out} to measure on need "
            f"{((windows or MIN_WINDOWS) + held_out) * window}; give more text, fewer or shorter "
            "windows, or another text to measure on with --text"
        )
    start = (available - held_out) * window
    return Data(
        calibration=tokens[:start],
        calibrated_on=calibration.name,
        measure={"tokens": tokens[start : available * window].reshape(held_out, window)},
        measured_on=(
            f"the last {held_out * window:,} tokens of {calibration.name}, not calibrated on"
        ),
    )


def _arrays(captured: CapturedModel, file: Path | None, count: int, seed: int) -> Data:
    from edgesparse.calibrate import calibration_batches

    if file is not None:
        batches = calibration_batches(captured, file)
        half = len(batches) // 2
        if half == 0:
            return Data(
                calibration=batches, calibrated_on=file.name, measure={"inputs": batches},
                measured_on=f"{file.name}, which it was calibrated on: too few examples to split",
            )  # fmt: skip
        return Data(
            calibration=batches[half:], calibrated_on=f"the second half of {file.name}",
            measure={"inputs": batches[:half]}, measured_on=f"the first half of {file.name}",
        )  # fmt: skip
    batches = random_batches(captured.example_inputs, count, seed)
    return Data(
        calibration=batches[1:],
        calibrated_on=(
            f"{count - 1} random inputs like the example inputs; give --calibration NPZ with real "
            "ones for a model that matters"
        ),
        measure={"inputs": batches[:1]},
        measured_on="the model's own example inputs",
    )


def random_batches(example: Mapping[str, Any], count: int, seed: int) -> list[Mapping[str, Any]]:
    """Return the example inputs, then ``count - 1`` random inputs of the same kind.

    Floating tensors become normal noise of the same mean and spread; of integer tensors the values
    are shuffled, which leaves masks of ones as they are; everything else stays.
    """
    import torch

    rng = torch.Generator().manual_seed(seed)

    def variant() -> Mapping[str, Any]:
        return {
            name: _like(value, rng) if isinstance(value, torch.Tensor) else value
            for name, value in example.items()
        }

    return [example, *(variant() for _ in range(count - 1))]


def _like(value: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    import torch

    if value.is_floating_point():
        spread = value.float().std(unbiased=False)
        noise = torch.randn(value.shape, generator=rng)
        return (value.float().mean() + spread * noise).to(value.dtype)
    order = torch.randperm(value.numel(), generator=rng)
    return value.flatten()[order].reshape(value.shape)
