"""Masks that grow while the model learns: remove a little, recover, remove a little more.

A mask chosen in one shot has to guess what training can repair. Here recovery starts from all
weights, rounded to the grid, and the sparsity grows over the first part of the training to the
pattern's, along a cubic (Zhu & Gupta 2017, arXiv 1710.01878). What goes first is what the loss
would miss least, by the diagonal of its second derivative: ``w² · E[g²]`` (LeCun et al. 1990,
Optimal Brain Damage), for which the optimizer's second moment serves as ``E[g²]``. A weight once
removed stays so. The last mask is frozen for the rest of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgesparse.pattern import Pattern
from edgesparse.prune.masks import grown, keep_highest
from edgesparse.recovery.latent import LatentWeight
from edgesparse.recovery.sharded import whole

_EVERY = 10  # steps between two removals: Adam's second moment remembers about 20


class GrowingMasks:
    """The masks of a student between all weights and each tensor's pattern."""

    def __init__(self, latents: Sequence[tuple[LatentWeight, Pattern]], *, until: float) -> None:
        """Take the tensors whose masks grow.

        Args:
            latents: Each with the pattern it ends in.
            until: Fraction of the training after which the masks are complete.
        """
        self._latents = [(latent, p) for latent, p in latents if not p.is_dense]
        self._until = until
        self._reached = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every mask is the pattern's."""
        return self._reached >= 1

    def advance(self, step: int, fraction: float, optimizer: torch.optim.Optimizer) -> None:
        """Remove what is due at a fraction of the training; every tenth step, and at the end."""
        time = min(1.0, fraction / self._until)
        if self.is_complete or (time < 1 and step % _EVERY):
            return
        self._reached = time
        for latent, pattern in self._latents:
            _remove(latent, grown(pattern, 1 - (1 - time) ** 3), optimizer.state)

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        """Complete the masks if the training ended before they were."""
        self.advance(0, self._until, optimizer)


@torch.no_grad()
def _remove(
    latent: LatentWeight, pattern: Pattern, moments: Mapping[Tensor, Mapping[str, Tensor]]
) -> None:
    """Shrink one mask to ``pattern``, in place: what was removed before scores lowest."""
    scores = whole(latent.values).square()
    moment = moments.get(latent.values, {}).get("exp_avg_sq")
    if moment is not None:
        scores = scores * whole(moment)
    scores = torch.where(latent.keep_mask, scores, -torch.ones_like(scores))
    latent.keep_mask.copy_(keep_highest(scores, pattern) & latent.keep_mask)
