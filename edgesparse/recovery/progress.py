"""Where a recovery stands: its limits, what is done, and the best state seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn


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
class Position:
    """Where a run is; ``loss`` is a running mean."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan

    def add(self, loss: float, seconds: float) -> None:
        """Count one step done."""
        self.step, self.seconds = self.step + 1, seconds
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss


@dataclass
class Best:
    """The best state by the held-out loss, and for how many checks there was no better."""

    patience: int
    least: float = math.inf
    last: float | None = None
    worse: int = 0
    state: dict[str, Tensor] | None = None

    def see(self, loss: float, student: nn.Module) -> None:
        """Take notice of one check."""
        self.last = loss
        self.worse = 0 if loss < self.least else self.worse + 1
        if loss < self.least:
            self.least, self.state = loss, _copy(student)

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.worse >= self.patience


def _copy(student: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}
