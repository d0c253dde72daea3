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

from edgesparse.calibrate.factor import Factor
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
        factor: Of the Hessian of the inputs.
        pattern: Choose the mask during the sweep, block by block of columns.
        keep_mask: Or use this one, bool [N, K]; neither keeps everything.
        grid: Round what is kept; None leaves it real.
        steps: Those of the grid, [N, G, ...]; None searches each group's when it begins.
        group_of: Group of each column, for columns that were put into another order; needs
            ``steps``. None for groups of neighbours.
    """
    # Columns of W as rows of V: what one step reads and writes lies together in memory.
    V, U, K = weight.T.clone(memory_format=torch.contiguous_format), factor.upper, weight.shape[1]
    keep = torch.ones_like(V, dtype=torch.bool) if keep_mask is None else keep_mask.T.contiguous()
    found: list[Tensor] = [] if steps is None else list(steps.unbind(1))
    width = _block_width(pattern)
    for start in range(0, K, width):
        stop = min(K, start + width)
        part = slice(start, stop)
        if pattern is not None:
            keep[part] = keep_highest(_scores(V, factor, part), pattern).T
        block, Ub = V[part], U[part, part]
        errors, pivots = torch.empty_like(block), Ub.diagonal().unbind()
        for j in range(stop - start):
            column = start + j
            if pattern is not None and pattern.of and column % pattern.of == 0:
                group = slice(column, min(column + pattern.of, stop))
                keep[group] = keep_highest(_scores(V, factor, group), pattern).T
            if grid is not None and steps is None and column % grid.group_size == 0:
                group = slice(column, min(column + grid.group_size, K))
                found.append(grid.search_group((V[group] * keep[group]).T.contiguous()))
            w = block[j]
            q = w
            if grid is not None:
                group_index = group_of[column] if group_of else column // grid.group_size
                q = grid.nearest(w, found[group_index])
            q = q * keep[column]
            error = torch.div(w - q, pivots[j], out=errors[j])
            block[j + 1 :].addr_(Ub[j, j + 1 :], error, alpha=-1)
            w.copy_(q)
        V[stop:].addmm_(U[part, stop:].T, errors, alpha=-1)
    return Swept(
        weight=V.T.contiguous(),
        keep_mask=keep.T.contiguous(),
        steps=torch.stack(found, 1) if found else None,
    )


def _scores(V: Tensor, factor: Factor, part: slice) -> Tensor:
    """Return the cost, [N, columns], of removing each weight of some rows of ``V``, [K, N].

    Dead columns go first.
    """
    cost = (V[part].T / factor.upper.diagonal()[part]).square()
    return torch.where(factor.dead[part], -torch.ones_like(cost), cost)


def _block_width(pattern: Pattern | None) -> int:
    """Return about 128 columns, a whole number of the pattern's groups or blocks."""
    unit = 1 if pattern is None else pattern.of or pattern.block[1]
    return unit * max(1, _WIDTH // unit)
