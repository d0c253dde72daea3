"""The state of a recovery in one safetensors file, enough to go on to the very same bits.

student.*       weights being trained, and masks
optimizer.*     moments by parameter
best.*          the best state by the held-out loss, once there is one
"recovery"      metadata, JSON: steps, seconds, running loss, and what the held-out losses were
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgesparse.errors import CalibrationError
from edgesparse.recovery.progress import Best, Position

_EMPTY = {"loss": None, "least": None, "last": None, "worse": 0}  # what older files do not say
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Checkpoint:
    """One file, replaced whole: it is written beside its place and renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, at: Position, best: Best
    ) -> None:
        """Save everything a later run needs to go on as if it had not been interrupted."""
        tensors = {f"student.{n}": v.detach().cpu().contiguous() for n, v in _state(student)}
        for index, state in optimizer.state_dict()["state"].items():
            for moment in _MOMENTS:
                value = torch.as_tensor(state[moment]).detach().cpu().clone()
                tensors[f"optimizer.{index}.{moment}"] = value
        for name, value in (best.state or {}).items():
            tensors[f"best.{name}"] = value.detach().cpu().contiguous()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.partial")
        try:
            where = json.dumps(
                {
                    "step": at.step,
                    "seconds": at.seconds,
                    "loss": None if math.isnan(at.loss) else at.loss,
                    "least": best.least if best.state else None,
                    "last": best.last,
                    "worse": best.worse,
                }
            )
            save_file(tensors, aside, metadata={"recovery": where})
            aside.replace(self._path)
        finally:
            aside.unlink(missing_ok=True)

    def restore(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, at: Position, best: Best
    ) -> None:
        """Load the file into what is given; leave all of it as it is if there is no file.

        Raises:
            CalibrationError: The file is damaged or belongs to another model.
        """
        if not self._path.exists():
            return
        try:
            with safe_open(self._path, "pt") as file:
                where = _EMPTY | json.loads((file.metadata() or {})["recovery"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CalibrationError(
                f"checkpoint {self._path} cannot be read: {error}; delete it to start anew"
            ) from None
        shapes = {f"student.{name}": value.shape for name, value in _state(student)}
        if shapes != {n: t.shape for n, t in tensors.items() if n.startswith("student.")}:
            raise CalibrationError(
                f"checkpoint {self._path} belongs to another model or plan; delete it to start "
                "anew, or give another path"
            )
        student.load_state_dict({n.removeprefix("student."): tensors[n] for n in shapes})
        self._restore_moments(optimizer, tensors)
        at.step, at.seconds = int(where["step"]), float(where["seconds"])
        at.loss = math.nan if where["loss"] is None else float(where["loss"])
        best.last, best.worse = where["last"], int(where["worse"])
        state = {n: tensors[f"best.{n}"] for n, _ in _state(student) if f"best.{n}" in tensors}
        if state:
            device = next(iter(student.state_dict().values())).device
            best.state = {name: value.to(device) for name, value in state.items()}
            best.least = float(where["least"])

    def _restore_moments(
        self, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
    ) -> None:
        """Put the optimizer's moments back."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, moment = rest.partition(".")
                state.setdefault(int(index), {})[moment] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _state(student: nn.Module) -> list[tuple[str, Tensor]]:
    return list(student.state_dict().items())
