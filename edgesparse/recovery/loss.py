"""How far the student's outputs are from the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def distance(student: object, teacher: object, *, logits: bool) -> Tensor:
    """Return the loss: KL(teacher ‖ student) per token, or the relative squared error.

    Args:
        student: A model's output.
        teacher: The dense model's output on the same inputs.
        logits: Whether the first output is next-token logits; else every floating output counts,
            each relative to the teacher's own power.
    """
    ours, theirs = list(_tensors(student)), list(_tensors(teacher))
    if logits:
        q, p = ours[0].float().log_softmax(-1), theirs[0].float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()
    errors = [
        (a.float() - b.float()).square().mean() / b.float().square().mean().clamp(min=1e-12)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(errors).mean()


def _tensors(output: object) -> Iterator[Tensor]:
    """Yield the floating tensors of a model's output in order; caches and states are not output."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            if name not in ("past_key_values", "attentions"):
                yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)
