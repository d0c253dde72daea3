"""The state of a recovery in one safetensors file, enough to go on to the very same bits.

student.*       weights being trained, and masks
optimizer.*     moments by parameter
best.*          the best state by the held-out loss, once there is one
"recovery"      metadata, JSON: steps, seconds, running loss, what the held-out losses were, and of
                which job (``job``) all that is
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgesparse.calibrate.team import Team
from edgesparse.errors import CalibrationError, FormatError, ResumeRefused
from edgesparse.journal import first_difference
from edgesparse.recovery.progress import Best, Position
from edgesparse.recovery.sharded import part_of, parts_of, whole
from edgesparse.store.atomic import flush_directory

# What older files do not say.
_EMPTY: dict[str, Any] = {"loss": None, "least": None, "last": None, "worse": 0, "job": {}}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_DAMAGE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # of JSON values


class Checkpoint:
    """One file, replaced whole: it is written beside its place and renamed.

    The first process of a team writes for all, every one reads: the file says nothing of how many
    there were.

    Args:
        path: The file.
        job: What decides what comes out, as JSON values; another job's file is refused.
        team: The processes that share the work.
    """

    def __init__(
        self, path: Path, job: Mapping[str, Any] | None = None, team: Team | None = None
    ) -> None:
        self._path, self._job, self._team = path, dict(job or {}), team or Team()

    def write(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, at: Position, best: Best
    ) -> None:
        """Save everything a later run needs to go on as if it had not been interrupted.

        Raises:
            FormatError: The disk is full, or another fault of the file system; what was there is
                there still.
        """
        tensors = {f"student.{n}": _plain(v) for n, v in _state(student)}
        for index, state in optimizer.state_dict()["state"].items():
            for moment in _MOMENTS:
                value = _plain(torch.as_tensor(state[moment])).clone()
                tensors[f"optimizer.{index}.{moment}"] = value
        for name, value in (best.state or {}).items():
            tensors[f"best.{name}"] = _plain(value)
        if self._team.leads:
            self._save(tensors, at, best)

    def _save(self, tensors: dict[str, Tensor], at: Position, best: Best) -> None:
        where = {
            "step": at.step,
            "seconds": at.seconds,
            "loss": None if math.isnan(at.loss) else at.loss,
            "least": best.least if best.state else None,
            "last": best.last,
            "worse": best.worse,
            "job": self._job,
        }
        aside = self._path.with_name(f".{self._path.name}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, aside, metadata={"recovery": json.dumps(where)})
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(self._path)
            flush_directory(self._path.parent)
        except (SafetensorError, OSError) as error:
            raise FormatError(
                f"checkpoint {self._path} cannot be written: {error}; an earlier one is left as it "
                "was: make room and go on from it"
            ) from None
        finally:
            aside.unlink(missing_ok=True)

    def restore(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, at: Position, best: Best
    ) -> None:
        """Load the file into what is given; leave all of it as it is if there is no file.

        Raises:
            CalibrationError: The file is damaged.
            ResumeRefused: It is of another job; the difference is named.
        """
        if not self._path.exists():
            return
        try:
            with safe_open(self._path, "pt") as file:
                where = _Where.of(json.loads((file.metadata() or {})["recovery"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, *_DAMAGE) as error:
            raise CalibrationError(
                f"checkpoint {self._path} cannot be read: {error}; delete it to start anew"
            ) from None
        # Through JSON and back, so that it equals one that was read.
        difference = first_difference(where.job, json.loads(json.dumps(self._job)))
        if difference:
            raise ResumeRefused(
                f"checkpoint {self._path} is of another job: {difference}; give the same again, or "
                "delete it to start anew"
            )
        trained, state = _under("student.", tensors), _under("best.", tensors)
        moments = _moments(tensors, optimizer)
        if moments is None or not all(_fits(t, student) for t in (trained, state or trained)):
            raise CalibrationError(
                f"checkpoint {self._path} does not hold the state of this model; delete it to "
                "start anew, or give another path"
            )
        student.load_state_dict(parts_of(trained, student.state_dict()))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        at.step, at.seconds, at.loss = where.step, where.seconds, where.loss
        best.last, best.worse = where.last, where.worse
        if state:
            best.state, best.least = parts_of(state, student.state_dict()), where.least


@dataclass(frozen=True, kw_only=True)
class _Where:
    """The metadata, of the kinds it should be."""

    step: int
    seconds: float
    loss: float
    least: float
    last: float | None
    worse: int
    job: dict[str, Any]

    @classmethod
    def of(cls, value: Any) -> _Where:
        """Raises one of ``_DAMAGE``."""
        value = _EMPTY | value
        return cls(
            step=int(value["step"]),
            seconds=float(value["seconds"]),
            loss=math.nan if value["loss"] is None else float(value["loss"]),
            least=math.inf if value["least"] is None else float(value["least"]),
            last=None if value["last"] is None else float(value["last"]),
            worse=int(value["worse"]),
            job=dict(value["job"]),
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _fits(tensors: Mapping[str, Tensor], student: nn.Module) -> bool:
    """Whether these are the tensors of the student's state."""
    return {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in _state(student)
    }


def _moments(
    tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]] | None:
    """Return the optimizer's moments by place of the parameter; None if they do not fit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    left = {name for name in tensors if name.startswith("optimizer.")}
    for index, parameter in enumerate(parameters):
        names = {moment: f"optimizer.{index}.{moment}" for moment in _MOMENTS}
        if not left & set(names.values()):
            continue
        if not left.issuperset(names.values()):
            return None
        left -= set(names.values())
        own = {moment: tensors[name] for moment, name in names.items()}
        if own["step"].dim() or any(own[m].shape != parameter.shape for m in _MOMENTS[:2]):
            return None
        state[index] = {m: part_of(v, parameter) if v.dim() else v for m, v in own.items()}
    return None if left else state


def _plain(value: Tensor) -> Tensor:
    return whole(value.detach()).cpu().contiguous()


def _state(student: nn.Module) -> list[tuple[str, Tensor]]:
    return list(student.state_dict().items())
