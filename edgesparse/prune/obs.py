"""Optimal Brain Surgeon, one column at a time: the sweep behind SparseGPT and GPTQ.

Removing or rounding weight ``w_j`` of a row costs ``(w_j - q_j)² / d_j²``, and the columns not yet
fixed take up the error: ``w_k -= (w_j - q_j) / d_j · U_jk``, where ``U`` is the upper Cholesky
factor of ``H⁻¹`` and ``d`` its diagonal (Frantar & Alistarh 2022/2023, arXiv 2210.17323 and
2301.00774). Columns go in blocks: inside one the update is a rank-1 product, the columns behind it
are updated once with a matrix product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgesparse.calibrate.factor import Factor
from edgesparse.pattern import Pattern
from edgesparse.prune.masks import keep_highest
from edgesparse.prune.recorded import run
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
    groups = group_of or ([] if grid is None else [c // grid.group_size for c in range(K)])
    searched = None if grid is None or steps is not None else grid.group_size
    of = None if pattern is None else pattern.of
    width, errors = _block_width(pattern), torch.empty_like(V)
    for start in range(0, K, width):
        stop = min(K, start + width)
        if pattern is not None and (searched or not of):  # of N:M a guess, to search scales by
            keep[start:stop] = keep_highest(_scores(V, factor, slice(start, stop)), pattern).T
        for first, last in _runs(start, stop, of, searched):
            if pattern is not None and of and first % of == 0:
                group = slice(first, min(first + of, stop))
                keep[group] = keep_highest(_scores(V, factor, group), pattern).T
            if grid is not None and searched and first % searched == 0:
                group = slice(first, min(first + searched, K))
                found.append(grid.search_group((V[group] * keep[group]).T.contiguous()))
            part = slice(first, last)
            changed, read = (V[part], errors[part]), (U[part, part], keep[part])
            if grid is None:
                run(_remove, changed, read)
            else:
                by_column = torch.stack([found[g] for g in groups[part]])
                run(_round, changed, (*read, by_column), grid)
            V[last:stop].addmm_(U[part, last:stop].T, errors[part], alpha=-1)
        V[stop:].addmm_(U[start:stop, stop:].T, errors[start:stop], alpha=-1)
    return Swept(
        weight=V.T.contiguous(),
        keep_mask=keep.T.contiguous(),
        steps=torch.stack(found, 1) if found else None,
    )


def _runs(start: int, stop: int, *units: int | None) -> Iterator[tuple[int, int]]:
    """Yield the columns between which no multiple of any unit lies, as (first, last + 1)."""
    inner = {c for unit in units if unit for c in range(-(-start // unit) * unit, stop, unit)}
    yield from itertools.pairwise(sorted({start, *inner, stop}))


def _remove(W: Tensor, errors: Tensor, U: Tensor, keep: Tensor) -> None:
    """Remove what is not kept of a run of columns, W [C, N]; the columns after take it up."""
    shares = ~keep / U.diagonal()[:, None]
    for j in range(len(W)):
        error = torch.mul(W[j], shares[j], out=errors[j])
        W[j + 1 :].addr_(U[j, j + 1 :], error, alpha=-1)
    W.mul_(keep)


def _round(W: Tensor, errors: Tensor, U: Tensor, keep: Tensor, steps: Tensor, grid: Grid) -> None:
    """Likewise, and round what is kept to the grid; steps [C, N, ...]."""
    pivots = U.diagonal().unbind()
    for j in range(len(W)):
        q = grid.nearest(W[j], steps[j]) * keep[j]
        error = torch.div(W[j] - q, pivots[j], out=errors[j])
        W[j + 1 :].addr_(U[j, j + 1 :], error, alpha=-1)
        W[j].copy_(q)


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
