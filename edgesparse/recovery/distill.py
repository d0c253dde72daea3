"""Distillation: the packed values learn to give the dense model's outputs, under frozen masks.

The student computes with exactly the weights that will be packed (``latent``), the loss is the
KL divergence to the teacher's next-token distribution, or the relative squared error of a model
that is no language model. What comes back is packed, so what is measured is what ships. With
``gradual`` the masks are found on the way and frozen then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from edgesparse.calibrate.team import Team
from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.data import draws
from edgesparse.recovery.hidden import Watched, blocks_of
from edgesparse.recovery.job import job
from edgesparse.recovery.loop import Loop
from edgesparse.recovery.progress import Limits, RecoveryProgress
from edgesparse.recovery.room import require_room
from edgesparse.recovery.sharded import shard
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
    gradual: float = 0.0,
    noise: float = 0.0,
    hidden: float = 0.0,
    checkpoint: str | Path | None = None,
    team: Team | None = None,
    progress: Callable[[RecoveryProgress], None] | None = None,
) -> CompressedModel:
    """Return the model with better values in the same patterns and formats.

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
        gradual: Fraction of the allowance in which new masks of the same patterns are found by
            removing weights little by little while the rest learns (``recovery.gradual``), less
            than 1; 0 keeps the masks. For masks of blocks, which one shot chooses badly.
        noise: Fraction of the tokens of ``data`` replaced by random ones, less than 1. A teacher
            that was trained on this very text knows it by heart; on a disturbed one it shows what
            it does with texts it has never seen. The held-out text is not disturbed.
        hidden: Weight of a second loss, the relative squared error of the hidden tensors between
            the model's blocks; 0 compares outputs only. For encoders and networks of convolutions.
        checkpoint: A file to save the state in every minute and when the run ends, however it
            ends; and to go on from if it exists and is of the same job: the same model, teacher,
            data, options and code. ``steps`` and ``minutes`` may differ.
        team: Processes that share the work, each with the same arguments: every one runs ``batch``
            examples of its own in a forward pass and holds its part of what is trained
            (``recovery.sharded``). R of them make what one makes with R times ``accumulate``, up to
            rounding. Every one returns the whole model.
        progress: Called after every step.

    Raises:
        UsageError: Neither ``minutes`` nor ``steps``, an option that is not positive, ``gradual``
            or ``noise`` not in [0, 1), ``hidden`` for a model without blocks, a team for one whose
            blocks share weights, or less memory than training takes for sure.
        DeviceError: Another process of the team is gone.
        CalibrationError: Too little data, a damaged checkpoint, or a loss that is not finite.
        ResumeRefused: The checkpoint is of another job; the difference is named.
        FormatError: The checkpoint cannot be written, or there is no room for it.
    """
    if not minutes and not steps:
        raise UsageError("recover needs a limit: minutes=10, or steps=1000")
    for name, least, value in (("lr", 0.0, lr), ("batch", 0, batch), ("accumulate", 0, accumulate)):
        if not value > least:
            raise UsageError(f"{name} is {value}, expected more than 0")
    for name, fraction in (("gradual", gradual), ("noise", noise)):
        if not 0 <= fraction < 1:
            raise UsageError(f"{name} is {fraction}, expected at least 0 and less than 1")
    teacher, team = teacher or compressed.captured, team or Team()
    target = torch.device(device)
    require_room(
        compressed, held_whole=target.type == "cpu" and team.size == 1,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        keeps_best=validation is not None,
    )  # fmt: skip
    begin = target if team.size == 1 else torch.device("cpu")
    limits = Limits(steps=steps, minutes=minutes, patience=patience)
    draw = draws(teacher, data, window=window, batch=batch, seed=seed, noise=noise)
    held_out = None
    if validation is not None:
        held_out = draws(teacher, validation, window=window, batch=batch, seed=seed + 1)
    student = Student(compressed).to_device(begin)
    masks = student.grow_masks(teacher.weights(), until=gradual) if gradual else None
    dense = teacher_of(teacher, begin)
    if team.size > 1:
        student.share_out(team, target)
        shard(dense, team, target, trains=False)
    watched = None
    if hidden > 0:
        blocks = blocks_of(dense)
        watched = (hidden, student.watch(blocks), Watched(dense, blocks))
    loop = Loop(
        student=student,
        teacher=dense,
        logits=teacher.task == "causal-lm",
        device=target,
        lr=lr,
        accumulate=accumulate,
        hidden=watched,
        team=team,
    )
    options = {"lr": lr, "seed": seed, "gradual": gradual, "noise": noise, "hidden": hidden}
    saved = None
    if checkpoint is not None:
        more = {
            "batch": batch, "window": window, "patience": patience, "device": target.type,
            "batches a step": accumulate * team.size,
        }  # fmt: skip
        checked = None if held_out is None else held_out.sha256
        work = job(
            compressed, teacher, data=draw.sha256, validation=checked, options=options | more
        )
        saved = Checkpoint(Path(checkpoint), work, team)
    with team.together():
        history = loop.run(draw, held_out, limits, saved, progress, masks)
        packed, kept = student.pack()
    return dataclasses.replace(
        compressed,
        packed=packed,
        kept=kept,
        errors={},
        metadata={**compressed.metadata, "recovery": {**history, **options}},
    )
