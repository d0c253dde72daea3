"""The factor of an inverse Hessian, which the solvers that repair errors work with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """``U`` with ``UᵀU = (H + λI)⁻¹``, upper triangular float32 [K, K], and the dead columns."""

    upper: Tensor
    dead: Tensor

    def solve(self, right: Tensor) -> Tensor:
        """Return ``B (H + λI)⁻¹`` for ``B`` [N, K], float32."""
        return (right @ self.upper.T) @ self.upper


def factorize(H: Tensor, damping: float) -> Factor:
    """Return the factor of the inverse of ``H`` damped by ``damping`` times its mean diagonal.

    Columns that no input ever reached get a diagonal of one: they stand alone. With rows and
    columns in reverse, ``H = LLᵀ``; ``L`` put back is an upper triangle ``R`` with ``H = RRᵀ``,
    and ``U = R⁻¹``: one factorization and one triangular inverse, in float64 so that damping may
    be low.

    Args:
        H: float32 [K, K], symmetric, positive semidefinite.
        damping: Relative to the mean of the diagonal; more than 0.
    """
    reverse = H.flip(0, 1).double()
    diagonal = reverse.diagonal()
    dead = diagonal <= 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_zeros(())
    diagonal.copy_(torch.where(dead, torch.ones_like(diagonal), diagonal + damping * mean))
    lower = torch.linalg.cholesky(reverse)
    del reverse, diagonal  # of many columns these squares are what takes memory
    inverse = _inverse_of_lower(lower)
    del lower
    return Factor(inverse.float().flip(0, 1), dead.flip(0))


def _inverse_of_lower(L: Tensor) -> Tensor:
    """Return the inverse of a lower triangle [K, K], by halves: most of it is products."""
    size = len(L)
    if size <= _DIRECT:
        eye = torch.eye(size, dtype=L.dtype, device=L.device)
        direct: Tensor = torch.linalg.solve_triangular(L, eye, upper=False)
        return direct
    half = size // 2
    inverse = torch.zeros_like(L)
    inverse[:half, :half] = _inverse_of_lower(L[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(L[half:, half:])
    torch.mm(
        inverse[half:, half:] @ L[half:, :half],
        inverse[:half, :half].neg(),
        out=inverse[half:, :half],
    )
    return inverse


_DIRECT = 512  # columns from which halves are faster than one call
