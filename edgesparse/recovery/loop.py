"""The optimizer's loop of a recovery: limits, schedule, held-out checks, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgesparse.errors import CalibrationError
from edgesparse.recovery.backward import Backward
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.data import Draw
from edgesparse.recovery.gradual import GrowingMasks
from edgesparse.recovery.loss import distance
from edgesparse.recovery.student import Trainee

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
class Limits:
    """When to stop: after ``steps`` or ``minutes``, whichever is set and comes first."""

    steps: int | None
    minutes: float | None
    patience: int

    def fraction(self, step: int, seconds: float) -> float:
        """Return how much of the allowance is used, 0 to 1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))


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

    def see(self, loss: float, student: Trainee) -> None:
        """Take notice of one check."""
        self.last = loss
        self.worse = 0 if loss < self.least else self.worse + 1
        if loss < self.least:
            self.least, self.state = loss, _copy(student)

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.worse >= self.patience


class Loop:
    """One run of the optimizer."""

    def __init__(
        self,
        *,
        student: Trainee,
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
        limits: Limits,
        saved: Checkpoint | None,
        progress: Callable[[RecoveryProgress], None] | None,
        masks: GrowingMasks | None = None,
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
                if masks is not None:
                    masks.advance(at.step, fraction, self._optimizer)
                at.add(self._step(draw, at.step, fraction), before + time.monotonic() - started)
                complete = masks is None or masks.is_complete
                if held_out is not None and complete and at.step % _VALIDATE_EVERY == 0:
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
        if masks is not None:
            masks.finish(self._optimizer)
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


def _copy(student: Trainee) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}
