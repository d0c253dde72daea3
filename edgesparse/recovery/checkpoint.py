"""The state of a recovery in one safetensors file: weights, optimizer moments, where it stood."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgesparse.errors import CalibrationError

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Checkpoint:
    """One file, replaced whole: it is written beside its place and renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float
    ) -> None:
        """Save everything a later run needs to go on as if it had not been interrupted."""
        tensors = {f"student.{n}": v.detach().cpu().contiguous() for n, v in _state(student)}
        for index, state in optimizer.state_dict()["state"].items():
            for moment in _MOMENTS:
                value = torch.as_tensor(state[moment]).detach().cpu().clone()
                tensors[f"optimizer.{index}.{moment}"] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_name(f".{self._path.name}.partial")
        try:
            where = json.dumps({"step": step, "seconds": seconds})
            save_file(tensors, aside, metadata={"recovery": where})
            aside.replace(self._path)
        finally:
            aside.unlink(missing_ok=True)

    def restore(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Load the file if there is one; return (steps, seconds) already done, (0, 0) if not.

        Raises:
            CalibrationError: The file is damaged or belongs to another model.
        """
        if not self._path.exists():
            return 0, 0.0
        try:
            with safe_open(self._path, "pt") as file:
                where = json.loads((file.metadata() or {})["recovery"])
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
        return int(where["step"]), float(where["seconds"])

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
