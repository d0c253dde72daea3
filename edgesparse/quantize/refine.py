"""Coordinate descent on codes and scales after a one-pass rounding.

For a fixed mask the error of a row is ``f(q) = (q - v) H (q - v)ᵀ``. One column at a time, with the
gradient ``G = (q - v) H`` kept up to date, the best code is the grid point nearest to
``q_j - G_j / H_jj``; one group at a time, with codes ``c``, the best scale is
``s - G_g·c / (c H_gg cᵀ)``. Neither step can raise ``f`` except by the rounding of a scale, and
such a step is not taken. (Coordinate descent on codes: Behdin et al. 2023, QuantEase,
arXiv 2309.01885.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesparse.quantize.grid import Grid, round_scale

_WIDTH = 128


def refine(
    codes: Tensor,
    scales: Tensor,
    target: Tensor,
    H: Tensor,
    grid: Grid,
    *,
    keep_mask: Tensor | None,
    sweeps: int,
) -> tuple[Tensor, Tensor]:
    """Return better (codes, scales) for ``target``, both float32, [N, K] and [N, G].

    Args:
        codes: Integers in float32 [N, K], 0 where removed.
        scales: float32 [N, G].
        target: The weight to come close to, float32 [N, K].
        H: Damped second moment of the inputs, float32 [K, K], positive diagonal.
        grid: Where codes and scales may lie.
        keep_mask: bool [N, K]; None keeps all.
        sweeps: Rounds of all scales and all codes.
    """
    codes, scales = codes.clone(), scales.clone()
    for _ in range(sweeps):
        gradient = (codes * grid.by_column(scales, codes.shape[1]) - target) @ H
        _refit_scales(codes, scales, gradient, H, grid)
        _descend(codes, grid.by_column(scales, codes.shape[1]), gradient, H, grid, keep_mask)
    return codes, scales


def _refit_scales(codes: Tensor, scales: Tensor, G: Tensor, H: Tensor, grid: Grid) -> None:
    """Move each group's scale to its best value on the 8-bit lattice; all in place."""
    for g in range(scales.shape[1]):
        part = slice(g * grid.group_size, (g + 1) * grid.group_size)
        c = codes[:, part]
        slope = (G[:, part] * c).sum(1)
        curvature = ((c @ H[part, part]) * c).sum(1)
        step = -slope / curvature.clamp(min=1e-30)
        new = round_scale(scales[:, g] + step, grid.bits)
        change = new - scales[:, g]
        better = change * (2 * slope + change * curvature) < 0
        change = torch.where(better & (scales[:, g] + step > 0), change, 0)
        scales[:, g] += change
        G.addmm_(c * change[:, None], H[part])


def _descend(
    codes: Tensor, by_column: Tensor, G: Tensor, H: Tensor, grid: Grid, keep_mask: Tensor | None
) -> None:
    """Move every code to its best value in turn; ``codes`` and ``G`` in place."""
    diagonal = H.diagonal()
    for start in range(0, codes.shape[1], _WIDTH):
        part = slice(start, start + _WIDTH)
        block, Hb = G[:, part], H[part, part]
        before = codes[:, part].clone()
        for j in range(block.shape[1]):
            column = start + j
            scale = by_column[:, column]
            wanted = codes[:, column] * scale - block[:, j] / diagonal[column]
            code = grid.codes(wanted, scale)
            if keep_mask is not None:
                code = code * keep_mask[:, column]
            move = (code - codes[:, column]) * scale
            block[:, j:].addr_(move, Hb[j, j:])
            codes[:, column] = code
        moved = (codes[:, part] - before) * by_column[:, part]
        G[:, :start].addmm_(moved, H[part, :start])
        G[:, part.stop :].addmm_(moved, H[part, part.stop :])
