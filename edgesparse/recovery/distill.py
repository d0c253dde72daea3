"""Distillation with frozen masks: the packed values learn to give the dense model's outputs.

The student computes with exactly the weights that will be packed (``latent``), the loss is the
KL divergence to the teacher's next-token distribution, or the relative squared error of a model
that is no language model. What comes back is packed, so what is measured is what ships.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgesparse.errors import CalibrationError, UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.recovery.backward import Backward
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.data import Draw, draws
from edgesparse.recovery.loss import distance
from edgesparse.recovery.student import Student, teacher_of

_log = logging.getLogger(__name__)

_WARM_UP = 0.05  # of the allowance
_VALIDATE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class RecoveryProgress:
    """Where a recovery stands.

    Attributes:
        step: Steps done.
        fraction: Of the steps or the time allowed.
        loss: Running mean of the training loss.
        validation: Loss on the validation data, None before the first time or without any.
        seconds: Since the start, earlier runs of a resumed one included.
    """

    step: int
    fraction: float
    loss: float
    validation: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """When to stop: after ``steps`` or ``minutes``, whichever is set and comes first."""

    steps: int | None
    minutes: float | None
    patience: int

    def fraction(self, step: int, seconds: float) -> float:
        """Return how much of the allowance is used, 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


def recover(
    compressed: CompressedModel,
    teacher: CapturedModel | None = None,
    *,
    data: object,
    minutes: float | None = None,
    steps: int | None = None,
    validation: object = None,
    device: str = "cpu",
    lr: float = 8e-4,
    batch: int = 8,
    accumulate: int = 1,
    window: int = 512,
    seed: int = 0,
    patience: int = 5,
    checkpoint: str | Path | None = None,
    progress: Callable[[RecoveryProgress], None] | None = None,
) -> CompressedModel:
    """Return the model with better values under the same masks, in the same formats.

    Args:
        compressed: The model; not changed.
        teacher: The dense model; None takes the one it was made from.
        data: Text to train on; see ``data.draws``.
        minutes: Time allowed. At least one of ``minutes`` and ``steps`` is needed; with ``steps``
            alone the result does not depend on the machine's speed.
        steps: Optimizer steps allowed.
        validation: Held-out text: the best state on it is returned, and training ends when it has
            not improved ``patience`` times in a row, every 100 steps.
        device: ``cpu`` or ``cuda``; bfloat16 arithmetic where it is fast.
        lr: Highest learning rate of the weights, reached after a twentieth of the allowance; over
            the whole of it the rate falls to zero with a cosine.
        batch: Windows or examples in one forward pass.
        accumulate: Forward passes in one step.
        window: Tokens in a window.
        seed: Decides the windows.
        patience: See ``validation``.
        checkpoint: A file to save the state in every minute and when the run ends, however it
            ends; and to go on from if it exists.
        progress: Called after every step.

    Raises:
        UsageError: Neither ``minutes`` nor ``steps``.
        CalibrationError: Too little data, a checkpoint of another model, or a loss that is not
            finite.
    """
    if not minutes and not steps:
        raise UsageError("recover needs a limit: minutes=10, or steps=1000")
    teacher = teacher or compressed.captured
    target = torch.device(device)
    limits = _Limits(steps=steps, minutes=minutes, patience=patience)
    draw = draws(teacher, data, window=window, batch=batch, seed=seed)
    held_out = None
    if validation is not None:
        held_out = draws(teacher, validation, window=window, batch=batch, seed=seed + 1)
    student = Student(compressed).to_device(target)
    loop = _Loop(
        student=student,
        teacher=teacher_of(teacher, target),
        logits=teacher.task == "causal-lm",
        device=target,
        lr=lr,
        accumulate=accumulate,
    )
    saved = None if checkpoint is None else Checkpoint(Path(checkpoint))
    history = loop.run(draw, held_out, limits, saved, progress)
    packed, kept = student.pack()
    return dataclasses.replace(
        compressed,
        packed=packed,
        kept=kept,
        errors={},
        metadata={**compressed.metadata, "recovery": {**history, "lr": lr, "seed": seed}},
    )


@dataclass
class _Position:
    """Where a run is; ``loss`` is a running mean."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan

    def add(self, loss: float, seconds: float) -> None:
        """Count one step done."""
        self.step, self.seconds = self.step + 1, seconds
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss


@dataclass
class _Best:
    """The best state by the held-out loss, and for how many checks there was no better."""

    patience: int
    least: float = math.inf
    last: float | None = None
    worse: int = 0
    state: dict[str, Tensor] | None = None

    def see(self, loss: float, student: Student) -> None:
        """Take notice of one check."""
        self.last = loss
        self.worse = 0 if loss < self.least else self.worse + 1
        if loss < self.least:
            self.least, self.state = loss, _copy(student)

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.worse >= self.patience


class _Loop:
    """One run of the optimizer."""

    def __init__(
        self,
        *,
        student: Student,
        teacher: nn.Module,
        logits: bool,
        device: torch.device,
        lr: float,
        accumulate: int,
    ) -> None:
        self._student, self._teacher, self._logits = student, teacher, logits
        self._device, self._accumulate = device, accumulate
        self._optimizer = torch.optim.AdamW(
            student.groups(lr),
            lr=lr,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=device.type == "cuda",
        )
        self._backward = Backward(self._loss, device)

    def run(
        self,
        draw: Draw,
        held_out: Draw | None,
        limits: _Limits,
        saved: Checkpoint | None,
        progress: Callable[[RecoveryProgress], None] | None,
    ) -> dict[str, float | int]:
        """Train until a limit; return what is worth recording."""
        at = (
            _Position()
            if saved is None
            else _Position(*saved.restore(self._student, self._optimizer))
        )
        started = last_saved = time.monotonic()
        before, best = at.seconds, _Best(limits.patience)
        try:
            while (fraction := limits.fraction(at.step, at.seconds)) < 1:
                at.add(self._step(draw, at.step, fraction), before + time.monotonic() - started)
                if held_out is not None and at.step % _VALIDATE_EVERY == 0:
                    best.see(self._validate(held_out), self._student)
                    if best.is_over:
                        _log.info("step %d: the held-out loss stopped falling", at.step)
                        break
                if saved is not None and time.monotonic() - last_saved > 60:
                    saved.write(self._student, self._optimizer, at.step, at.seconds)
                    last_saved = time.monotonic()
                if progress is not None:
                    progress(
                        RecoveryProgress(
                            step=at.step,
                            fraction=fraction,
                            loss=at.loss,
                            validation=best.last,
                            seconds=at.seconds,
                        )
                    )
        finally:
            if saved is not None:
                saved.write(self._student, self._optimizer, at.step, at.seconds)
        if held_out is not None and best.state is not None:
            best.see(self._validate(held_out), self._student)
            self._student.load_state_dict(best.state)
        return {"steps": at.step, "seconds": round(at.seconds, 1), "loss": at.loss}

    def _step(self, draw: Draw, step: int, fraction: float) -> float:
        """Take one optimizer step and return its loss."""
        warm = min(1.0, 0.02 + fraction / _WARM_UP)
        rate = warm * 0.5 * (1 + math.cos(math.pi * fraction))
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * rate
        self._optimizer.zero_grad(set_to_none=False)
        losses = [
            self._backward(draw(step * self._accumulate + part)) for part in range(self._accumulate)
        ]
        total = float(torch.stack(losses).mean())
        if not math.isfinite(total):
            raise CalibrationError(
                f"recovery step {step + 1}: the loss is {total}; use a lower lr, or check the data"
            )
        nn.utils.clip_grad_norm_(self._student.parameters(), float(self._accumulate))
        self._optimizer.step()
        return total

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        moved = {n: v.to(self._device) if isinstance(v, Tensor) else v for n, v in batch.items()}
        with _reduced_precision(self._device):
            with torch.no_grad():
                wanted = self._teacher(**moved)
            return distance(self._student(moved), wanted, logits=self._logits)

    @torch.no_grad()
    def _validate(self, held_out: Draw) -> float:
        """Return the mean loss on the same eight batches every time."""
        return sum(float(self._loss(held_out(i))) for i in range(8)) / 8


def _reduced_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return an autocast to bfloat16 where the hardware multiplies it, else nothing."""
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not fast:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def _copy(student: Student) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}
