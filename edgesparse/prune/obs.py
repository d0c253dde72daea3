"""Optimal Brain Surgeon, one column at a time: the sweep behind SparseGPT and GPTQ.

Removing or rounding weight ``w_j`` of a row costs ``(w_j - q_j)² / d_j²``, and the columns not yet
fixed take up the error: ``w_k -= (w_j - q_j) / d_j · U_jk``, where ``U`` is the upper Cholesky
factor of ``H⁻¹`` and ``d`` its diagonal (Frantar & Alistarh 2022/2023, arXiv 2210.17323 and
2301.00774). Columns go in blocks: inside one the update is a rank-1 product, the columns behind it
are updated once with a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgesparse.pattern import Pattern
from edgesparse.prune.masks import keep_highest
from edgesparse.quantize.grid import Grid

_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep chose.

    Attributes:
        weight: float32 [N, K], on the grid if there was one, zero where removed.
        keep_mask: bool [N, K].
        steps: Those of the grid, [N, G, ...]; None without one.
    """

    weight: Tensor
    keep_mask: Tensor
    steps: Tensor | None


@dataclass(frozen=True)
class Factor:
    """``U`` with ``UᵀU = (H + λI)⁻¹``, upper triangular float32 [K, K], and the dead columns."""

    upper: Tensor
    dead: Tensor


def factorize(H: Tensor, damping: float) -> Factor:
    """Return the factor of the inverse of ``H`` damped by ``damping`` times its mean diagonal.

    Columns that no input ever reached get a diagonal of one: they stand alone. In float64:
    inverting twice by Cholesky squares what rounding does to an ill-conditioned Hessian.

    Args:
        H: float32 [K, K], symmetric, positive semidefinite.
        damping: Relative to the mean of the diagonal; more than 0.
    """
    H = H.double()
    diagonal = H.diagonal().clone()
    dead = diagonal <= 0
    diagonal[dead] = 1
    mean = diagonal[~dead].mean() if bool((~dead).any()) else diagonal.new_zeros(())
    H = H.clone()
    H.diagonal().copy_(torch.where(dead, diagonal, diagonal + damping * mean))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return Factor(torch.linalg.cholesky(inverse, upper=True).float(), dead)


def sweep(
    weight: Tensor,
    factor: Factor,
    *,
    pattern: Pattern | None = None,
    keep_mask: Tensor | None = None,
    grid: Grid | None = None,
    steps: Tensor | None = None,
    group_of: Sequence[int] | None = None,
) -> Swept:
    """Fix every column of ``weight`` in order: choose its mask, round it, pass its error on.

    Args:
        weight: float32 [N, K].
        factor: See ``factorize``.
        pattern: Choose the mask during the sweep, block by block of columns.
        keep_mask: Or use this one, bool [N, K]; neither keeps everything.
        grid: Round what is kept; None leaves it real.
        steps: Those of the grid, [N, G, ...]; None searches each group's when it begins.
        group_of: Group of each column, for columns that were put into another order; needs
            ``steps``. None for groups of neighbours.
    """
    W, U, K = weight.clone(), factor.upper, weight.shape[1]
    mask = torch.ones_like(W, dtype=torch.bool) if keep_mask is None else keep_mask.clone()
    found: list[Tensor] = [] if steps is None else list(steps.unbind(1))
    width = _block_width(pattern)
    for start in range(0, K, width):
        stop = min(K, start + width)
        part = slice(start, stop)
        if pattern is not None:
            mask[:, part] = keep_highest(_scores(W, factor, part), pattern)
        errors = torch.zeros_like(W[:, part])
        block, Ub = W[:, part], U[part, part]
        for j in range(stop - start):
            column = start + j
            if pattern is not None and pattern.of and column % pattern.of == 0:
                group = slice(column, min(column + pattern.of, stop))
                mask[:, group] = keep_highest(_scores(W, factor, group), pattern)
            if grid is not None and steps is None and column % grid.group_size == 0:
                group = slice(column, min(column + grid.group_size, K))
                found.append(grid.search_group(W[:, group] * mask[:, group]))
            w = block[:, j]
            q = w
            if grid is not None:
                group_index = group_of[column] if group_of else column // grid.group_size
                q = grid.nearest(w, found[group_index])
            q = q * mask[:, column]
            error = (w - q) / Ub[j, j]
            block[:, j + 1 :].addr_(error, Ub[j, j + 1 :], alpha=-1)
            block[:, j] = q
            errors[:, j] = error
        W[:, stop:].addmm_(errors, U[part, stop:], alpha=-1)
    return Swept(weight=W, keep_mask=mask, steps=torch.stack(found, 1) if found else None)


def _scores(W: Tensor, factor: Factor, part: slice) -> Tensor:
    """Return the cost of removing each weight of some columns; dead columns go first."""
    cost = (W[:, part] / factor.upper.diagonal()[part]).square()
    return torch.where(factor.dead[part], -torch.ones_like(cost), cost)


def _block_width(pattern: Pattern | None) -> int:
    """Return about 128 columns, a whole number of the pattern's groups or blocks."""
    unit = 1 if pattern is None else pattern.of or pattern.block[1]
    return unit * max(1, _WIDTH // unit)
