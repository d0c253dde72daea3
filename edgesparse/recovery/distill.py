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

_WARMUP = 50
_BEST_EVERY = 100


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
    lr: float = 4e-4,
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
        lr: Highest learning rate of the weights; after a warm-up of 50 steps it falls to zero with
            a cosine over the allowance.
        batch: Windows or examples in one forward pass.
        accumulate: Forward passes in one step.
        window: Tokens in a window.
        seed: Decides the windows.
        patience: See ``validation``.
        checkpoint: A file to save the state in every minute and at the end, and to go on from if
            it exists.
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
        step, before = (0, 0.0) if saved is None else saved.restore(self._student, self._optimizer)
        started = last_saved = time.monotonic()
        mean, best, worse = math.nan, math.inf, 0
        validation: float | None = None
        best_state: dict[str, Tensor] | None = None
        while (
            fraction := limits.fraction(step, seconds := before + time.monotonic() - started)
        ) < 1:
            loss = self._step(draw, step, fraction)
            mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
            step += 1
            if held_out is not None and step % _BEST_EVERY == 0:
                validation = self._validate(held_out)
                worse = 0 if validation < best else worse + 1
                if validation < best:
                    best, best_state = validation, _copy(self._student)
                if worse >= limits.patience:
                    _log.info("step %d: no improvement for %d checks, stopping", step, worse)
                    break
            if saved is not None and time.monotonic() - last_saved > 60:
                saved.write(self._student, self._optimizer, step, seconds)
                last_saved = time.monotonic()
            if progress is not None:
                progress(
                    RecoveryProgress(
                        step=step,
                        fraction=fraction,
                        loss=mean,
                        validation=validation,
                        seconds=seconds,
                    )
                )
        total = before + time.monotonic() - started
        if saved is not None:
            saved.write(self._student, self._optimizer, step, total)
        if held_out is not None and best_state is not None and self._validate(held_out) > best:
            self._student.load_state_dict(best_state)
        return {"steps": step, "seconds": round(total, 1), "loss": mean}

    def _step(self, draw: Draw, step: int, fraction: float) -> float:
        """Take one optimizer step and return its loss."""
        rate = min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * fraction))
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
