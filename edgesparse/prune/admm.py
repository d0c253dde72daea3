"""ADMM pruning: a mask that settles while the weights adapt to it, then an exact refit.

Minimizes ``|X(V - W)ᵀ|²`` over ``V`` with the pattern's zeros (Boža 2024, arXiv 2401.02938). Inputs
are first scaled to unit norm, so that one penalty suits all columns. Each iteration

    mask ← highest |V + U| for a sparsity growing to the wanted one (cubic), then fixed
    Z ← (V + U) on the mask          U ← U + V - Z
    V ← (H + ρI)⁻¹ (H Wᵀ + ρ (Z - U)ᵀ)

and at the end the kept weights are refitted by preconditioned conjugate gradients on the fixed mask
(Meng et al. 2024, ALPS, arXiv 2406.07831).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.errors import RecipeError
from edgesparse.pattern import Pattern
from edgesparse.prune import Pruned
from edgesparse.prune.masks import grown, keep_highest


@dataclass(frozen=True, kw_only=True)
class ADMM:
    """Options of the iteration.

    Attributes:
        damping: Added to the scaled Hessian's unit diagonal.
        penalty: ρ.
        growing: Iterations in which the sparsity grows and the mask moves; 50 % sparsity of a 26 M
            language model: 20 gave 1.101 × the dense perplexity, 100 gave 1.095, 200 gave 1.097.
        settling: Iterations on the final mask.
        refit: Conjugate-gradient steps at the end.
    """

    damping: float = 0.01
    penalty: float = 1.0
    growing: int = 100
    settling: int = 10
    refit: int = 20
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN, Statistic.DENSE_TARGET})
    updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.damping > 0 and self.penalty > 0 and self.growing > 0):
            raise RecipeError("damping, penalty and growing of admm must be more than 0")

    def prune(self, weight: Tensor, statistics: Statistics, pattern: Pattern) -> Pruned:
        """Prune ``weight``, float32 [N, K]."""
        problem = statistics.once(
            ("admm", self.damping, self.penalty),
            lambda: self._problem(statistics.second_moment(weight.device)),
        )
        W = weight * problem.norm
        V, keep_mask = self._iterate(W, problem, pattern)
        V = refit(V, W, problem.H, keep_mask, steps=self.refit)
        return Pruned(V / problem.norm, keep_mask)

    def _problem(self, H: Tensor) -> _Problem:
        """Scale ``H`` and invert what every iteration divides by."""
        dead = H.diagonal() <= 0
        H = damped(H, self.damping)
        norm = H.diagonal().sqrt()
        H = H / norm / norm[:, None]
        identity = torch.eye(len(H), device=H.device)
        factor = torch.linalg.cholesky(H + self.penalty * identity)
        return _Problem(H, norm, torch.cholesky_inverse(factor), dead)

    def _iterate(self, W: Tensor, problem: _Problem, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Return the iterate on its final mask, and the mask; dead columns go first."""
        rho, total = self.penalty, self.growing + self.settling
        inverse, dead = problem.inverse, problem.dead
        WH = W @ problem.H
        V, U = W.clone(), torch.zeros_like(W)
        mask = torch.ones_like(W, dtype=torch.bool)
        for i in range(total):
            if i < self.growing:
                scores = torch.where(dead, -1.0, (V + U).square())
                mask = keep_highest(scores, grown(pattern, 1 - (1 - (i + 1) / self.growing) ** 3))
            Z = (V + U) * mask
            U = U + V - Z
            V = (WH + rho * (Z - U)) @ inverse
        return (V + U) * mask, mask


@dataclass(frozen=True)
class _Problem:
    """What all weights with the same inputs share: ``H`` with unit diagonal before damping's own.

    Attributes:
        H: Damped and scaled, float32 [K, K].
        norm: What its rows and columns were divided by, float32 [K].
        inverse: ``(H + ρI)⁻¹``.
        dead: Columns no input reaches, bool [K].
    """

    H: Tensor
    norm: Tensor
    inverse: Tensor
    dead: Tensor


def damped(H: Tensor, damping: float) -> Tensor:
    """Return ``H`` with ``damping`` times its mean live diagonal added; dead columns get ones."""
    diagonal = H.diagonal()
    dead = diagonal <= 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_zeros(())
    H = H.clone()
    H.diagonal().copy_(torch.where(dead, torch.ones_like(diagonal), diagonal + damping * mean))
    return H


def refit(V: Tensor, W: Tensor, H: Tensor, keep_mask: Tensor, *, steps: int) -> Tensor:
    """Return the values on ``keep_mask`` with least ``(V - W) H (V - W)ᵀ``, every row by itself.

    Conjugate gradients with a Jacobi preconditioner, all rows at once.

    Args:
        V: Start, float32 [N, K], zero off the mask.
        W: Target, float32 [N, K].
        H: float32 [K, K], positive definite.
        keep_mask: bool [N, K].
        steps: Iterations.
    """
    inverse = 1 / H.diagonal()
    residual = ((W - V) @ H) * keep_mask
    z = residual * inverse
    direction = z.clone()
    power = (residual * z).sum(1, keepdim=True)
    for _ in range(steps):
        curved = (direction @ H) * keep_mask
        curvature = (direction * curved).sum(1, keepdim=True)
        alpha = torch.where(curvature > 0, power / curvature.clamp(min=1e-30), 0.0)
        V = V + alpha * direction
        residual = residual - alpha * curved
        z = residual * inverse
        after = (residual * z).sum(1, keepdim=True)
        direction = z + torch.where(power > 0, after / power.clamp(min=1e-30), 0.0) * direction
        power = after
    return V


BEST = ADMM()
