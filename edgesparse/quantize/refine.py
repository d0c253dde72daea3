"""Coordinate descent on what a one-pass rounding found: values, and the steps of the grid.

For a fixed mask the error of a row is ``f(q) = (q - v) H (q - v)ᵀ``. One column at a time, with the
gradient ``G = (q - v) H`` kept up to date, the best value is the grid's nearest to
``q_j - G_j / H_jj``. Between such rounds the steps get better: with the multiples ``c`` of a group,
its best scale is ``s - G_g·c / (c H_gg cᵀ)``; the entries of a table solve one small linear system.
None of this can raise ``f`` except by rounding what is stored, and such a step is not taken.
(Coordinate descent on codes: Behdin et al. 2023, QuantEase, arXiv 2309.01885.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesparse.prune.recorded import run
from edgesparse.quantize.grid import Grid
from edgesparse.quantize.table import TableGrid

_WIDTH = 128


def refine(
    values: Tensor,
    steps: Tensor,
    target: Tensor,
    H: Tensor,
    grid: Grid,
    *,
    keep_mask: Tensor | None,
    sweeps: int,
) -> tuple[Tensor, Tensor]:
    """Return better (values, steps) for ``target``.

    Args:
        values: A weight on the grid, float32 [N, K], 0 where removed.
        steps: Those of the grid, [N, G, ...].
        target: The weight to come close to, float32 [N, K].
        H: Damped second moment of the inputs, float32 [K, K], positive diagonal.
        grid: Where values and steps may lie.
        keep_mask: bool [N, K]; None keeps all.
        sweeps: Rounds of all steps and all values.
    """
    values = values.clone()
    for _ in range(sweeps):
        if isinstance(grid, TableGrid):
            values, steps = _refit_tables(values, steps, target, H, grid, keep_mask)
            gradient = (values - target) @ H
        else:
            gradient = (values - target) @ H
            steps = _refit_scales(values, steps, gradient, H, grid)
        _descend(values, steps, gradient, H, grid, keep_mask)
    return values, steps


def _refit_scales(values: Tensor, steps: Tensor, G: Tensor, H: Tensor, grid: Grid) -> Tensor:
    """Return steps with each scale at its best storable value; moves ``values`` and ``G``."""
    scales = grid.scales(steps).clone()
    for g in range(scales.shape[1]):
        part = slice(g * grid.group_size, (g + 1) * grid.group_size)
        c = (values[:, part] / scales[:, g, None]).round_()
        slope = (G[:, part] * c).sum(1)
        curvature = ((c @ H[part, part]) * c).sum(1)
        if grid.is_shared:
            slope, curvature = slope.sum().expand_as(slope), curvature.sum().expand_as(curvature)
        step = -slope / curvature.clamp(min=1e-30)
        new = grid.round_scale(scales[:, g] + step)
        change = new - scales[:, g]
        better = change * (2 * slope + change * curvature) < 0
        change = torch.where(better & (scales[:, g] + step > 0), change, 0)
        scales[:, g] += change
        values[:, part] = c * scales[:, g, None]
        G.addmm_(c * change[:, None], H[part])
    return grid.with_scales(steps, scales)


def _refit_tables(
    values: Tensor,
    steps: Tensor,
    target: Tensor,
    H: Tensor,
    grid: TableGrid,
    keep_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return values and steps with each table at its best entries for the indices there are.

    With ``E_e`` the 0/1 matrix of the weights that have entry e, the entries t solve
    ``A t = b``, ``A_ef = sum(E_e H · E_f)`` and ``b_e = sum(E_e H · V)``.
    """
    index = grid.indices(values, steps)
    members = [index == e for e in range(1 << grid.bits)]
    if keep_mask is not None:
        members = [member & keep_mask for member in members]
    A, b = _normal_equations(members, target, H)
    tables = grid.tables_of(steps)
    for t, rows in enumerate(grid.row_slices(len(values))):
        At, bt = A[rows].sum(0), b[rows].sum(0)
        ridge = 1e-9 * At.diagonal().max().clamp(min=1e-30)
        At.diagonal().add_(ridge)
        found = torch.linalg.solve(At, bt + ridge * tables[t]).half().double()
        if bool(torch.isfinite(found).all()) and _cost(found, At, bt) < _cost(tables[t], At, bt):
            tables[t] = found
    moved = grid.steps_of(tables, len(values))
    chosen = moved[:, 0].gather(1, index)
    # Entries may have changed places: as a table they ascend again, the values stay.
    return (chosen if keep_mask is None else chosen * keep_mask), moved.sort(-1).values


def _normal_equations(members: list[Tensor], target: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [N, E, E] and b [N, E] of every row, float64."""
    rows, size = len(target), len(members)
    A = torch.zeros(rows, size, size, dtype=torch.float64, device=target.device)
    b = torch.zeros(rows, size, dtype=torch.float64, device=target.device)
    for e, member in enumerate(members):
        product = member.float() @ H
        b[:, e] = (product * target).sum(1)
        for f in range(e, size):
            A[:, e, f] = A[:, f, e] = (product * members[f]).sum(1)
    return A, b


def _cost(entries: Tensor, A: Tensor, b: Tensor) -> Tensor:
    return entries @ A @ entries - 2 * entries @ b


def _descend(
    values: Tensor, steps: Tensor, G: Tensor, H: Tensor, grid: Grid, keep_mask: Tensor | None
) -> None:
    """Move every value to its best in turn; ``values`` in place."""
    # Columns as rows: what one step reads and writes lies together in memory.
    V, G, columns = values.T.contiguous(), G.T.contiguous(), values.shape[1]
    keep = torch.ones_like(V, dtype=torch.bool) if keep_mask is None else keep_mask.T.contiguous()
    for start in range(0, columns, _WIDTH):
        stop = min(columns, start + _WIDTH)
        part = slice(start, stop)
        before = V[part].clone()
        by_column = torch.stack([steps[:, c // grid.group_size] for c in range(start, stop)])
        run(_settle, (V[part], G[part]), (H[part, part], keep[part], by_column), grid)
        moved = V[part] - before
        G[:start].addmm_(H[:start, part], moved)
        G[stop:].addmm_(H[stop:, part], moved)
    values.copy_(V.T)


def _settle(V: Tensor, G: Tensor, H: Tensor, keep: Tensor, steps: Tensor, grid: Grid) -> None:
    """Move the values of a run of columns [C, N] to their best in turn, steps [C, N, ...]."""
    diagonal = H.diagonal().unbind()
    for j in range(len(V)):
        value = grid.nearest(V[j] - G[j] / diagonal[j], steps[j]) * keep[j]
        G[j:].addr_(H[j, j:], value - V[j])
        V[j].copy_(value)
