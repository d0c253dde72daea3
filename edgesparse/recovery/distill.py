"""Distillation with frozen masks: the packed values learn to give the dense model's outputs.

The student computes with exactly the weights that will be packed (``latent``), the loss is the
KL divergence to the teacher's next-token distribution, or the relative squared error of a model
that is no language model. What comes back is packed, so what is measured is what ships.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.data import draws
from edgesparse.recovery.loop import Limits, Loop, RecoveryProgress
from edgesparse.recovery.student import Student, teacher_of


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
    limits = Limits(steps=steps, minutes=minutes, patience=patience)
    draw = draws(teacher, data, window=window, batch=batch, seed=seed)
    held_out = None
    if validation is not None:
        held_out = draws(teacher, validation, window=window, batch=batch, seed=seed + 1)
    student = Student(compressed).to_device(target)
    loop = Loop(
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
