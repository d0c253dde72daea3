"""The optimizer's loop of a recovery: limits, schedule, held-out checks, checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from edgesparse.calibrate.team import Team
from edgesparse.errors import CalibrationError
from edgesparse.recovery.backward import Backward
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.data import Draw
from edgesparse.recovery.gradual import GrowingMasks
from edgesparse.recovery.hidden import Watched
from edgesparse.recovery.loss import distance
from edgesparse.recovery.progress import Best, Limits, Position, RecoveryProgress
from edgesparse.recovery.sharded import mean_of
from edgesparse.recovery.student import Trainee

_log = logging.getLogger(__name__)

_WARM_UP = 0.05  # of the allowance
_VALIDATE_EVERY = 100


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
        hidden: tuple[float, Watched, Watched] | None = None,
        team: Team | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            student: What is trained.
            teacher: The dense model, frozen.
            logits: Whether outputs are next-token logits.
            device: Where both are.
            lr: Highest learning rate.
            accumulate: Batches in one step.
            hidden: Weight of the hidden tensors' distance, and who sees the student's and the
                teacher's; None compares outputs only.
            team: The processes that share the work; each has its part of student and teacher.
        """
        self._student, self._teacher, self._logits = student, teacher, logits
        self._hidden, self._team = hidden, team or Team()
        self._device, self._accumulate = device, accumulate
        self._optimizer = torch.optim.AdamW(
            student.groups(lr),
            lr=lr,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=device.type == "cuda",
        )
        self._backward = Backward(self._loss, device, records=self._team.size == 1)

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
        at, best = Position(), Best(limits.patience)
        if saved is not None:
            saved.restore(self._student, self._optimizer, at, best)
        started, is_whole = time.monotonic(), self._team.size == 1
        before = last_saved = at.seconds
        try:
            while (fraction := limits.fraction(at.step, at.seconds)) < 1 and not best.is_over:
                if masks is not None:
                    masks.advance(at.step, fraction, self._optimizer)
                loss = self._step(draw, at.step, fraction)
                at.add(*self._agreed(loss, before + time.monotonic() - started))
                complete = masks is None or masks.is_complete
                if held_out is not None and complete and at.step % _VALIDATE_EVERY == 0:
                    best.see(self._validate(held_out), self._student)
                    if best.is_over:
                        _log.info("step %d: the held-out loss stopped falling", at.step)
                if saved is not None and at.seconds - last_saved > 60:
                    saved.write(self._student, self._optimizer, at, best)
                    last_saved = at.seconds
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
            is_whole = True
        finally:
            # A team that was interrupted is not at one step: what is on disk is from before.
            if saved is not None and is_whole:
                saved.write(self._student, self._optimizer, at, best)
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
            self._backward(draw(self._team.size * part + self._team.rank))
            for part in range(step * self._accumulate, (step + 1) * self._accumulate)
        ]
        total = float(torch.stack(losses).mean())
        if not math.isfinite(total):
            raise CalibrationError(
                f"recovery step {step + 1}: the loss is {total}; use a lower lr, or check the data"
            )
        nn.utils.clip_grad_norm_(self._student.parameters(), float(self._accumulate))
        self._optimizer.step()
        return total

    def _agreed(self, *values: float) -> Sequence[float]:
        """Return the means over all processes: what decides must be alike in all of them."""
        if self._team.size == 1:
            return values
        means: list[float] = mean_of(self._team, torch.tensor(values, dtype=torch.float64)).tolist()
        return means

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        moved = {n: v.to(self._device) if isinstance(v, Tensor) else v for n, v in batch.items()}
        for watched in self._hidden[1:] if self._hidden else ():
            watched.take()  # what ran again for a backward pass was seen twice
        with _reduced_precision(self._device):
            with torch.no_grad():
                wanted = self._teacher(**moved)
            loss = distance(self._student(moved), wanted, logits=self._logits)
            if self._hidden is not None:
                weight, ours, theirs = self._hidden
                loss = loss + weight * distance(ours.take(), theirs.take(), logits=False)
            return loss

    @torch.no_grad()
    def _validate(self, held_out: Draw) -> float:
        """Return the mean loss on the same eight batches every time."""
        (mean,) = self._agreed(sum(float(self._loss(held_out(i))) for i in range(8)) / 8)
        return mean


def _reduced_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return an autocast to bfloat16 where the hardware multiplies it, else nothing."""
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not fast:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
