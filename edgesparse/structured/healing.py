"""Train what a cut left to give the whole model's outputs again: distillation of dense weights.

The loop, the data and the loss are those of ``recovery``; here every weight may move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from edgesparse.calibrate.record import disable_cache
from edgesparse.capture.module import capture_module
from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel
from edgesparse.recovery.data import draws
from edgesparse.recovery.loop import Loop
from edgesparse.recovery.progress import Limits, RecoveryProgress
from edgesparse.recovery.student import Trainee, teacher_of


class DenseStudent(Trainee):
    """A dense model all of whose floating parameters are trained."""

    def __init__(self, captured: CapturedModel) -> None:
        super().__init__()
        self.model = captured.loader().float()
        disable_cache(self.model)
        self.model.requires_grad_(True)

    def forward(self, batch: Mapping[str, Tensor]) -> object:
        """Run the model on keyword arguments."""
        return self.model(**batch)

    def groups(self, lr: float) -> list[dict[str, object]]:
        """Return the optimizer's parameter groups."""
        return [{"params": list(self.model.parameters()), "base": lr}]


def heal(
    small: CapturedModel,
    teacher: CapturedModel,
    *,
    data: object,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    lr: float = 4e-4,
    batch: int = 8,
    window: int = 512,
    seed: int = 0,
    progress: Callable[[RecoveryProgress], None] | None = None,
) -> CapturedModel:
    """Return ``small`` with weights trained to give the teacher's outputs.

    Args:
        small: What ``prune_structured`` returned; not changed.
        teacher: The model it was cut from.
        data: Text to train on; see ``recovery.data.draws``.
        minutes: Time allowed; at least one of ``minutes`` and ``steps`` is needed.
        steps: Optimizer steps allowed.
        device: ``cpu`` or ``cuda``.
        lr: Highest learning rate; it warms up and falls to zero with a cosine.
        batch: Windows or examples in a step.
        window: Tokens in a window.
        seed: Decides the windows.
        progress: Called after every step.

    Raises:
        UsageError: Neither ``minutes`` nor ``steps``.
        CalibrationError: Too little data, or a loss that is not finite.
    """
    if not minutes and not steps:
        raise UsageError("healing needs a limit: minutes=10, or steps=1000")
    target = torch.device(device)
    student = DenseStudent(small).to(target)
    loop = Loop(
        student=student,
        teacher=teacher_of(teacher, target),
        logits=teacher.task == "causal-lm",
        device=target,
        lr=lr,
        accumulate=1,
    )
    draw = draws(teacher, data, window=window, batch=batch, seed=seed)
    loop.run(draw, None, Limits(steps=steps, minutes=minutes, patience=1), None, progress)
    module = student.model.cpu().eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(getattr(torch, small.by_name[name].dtype))
    healed = capture_module(module, small.example_inputs)
    return dataclasses.replace(healed, source=small.source, task=small.task, config=small.config)
