"""Masks: from a score per weight and a pattern to which weights stay.

Sizes that do not divide:
- N:M: the last, shorter group of a row keeps at most N.
- blocks: the last rows and columns form smaller blocks; blocks compete by their mean score.
- a fraction: ``floor(sparsity × weights)`` are removed, in blocks never more than that. By row,
  what one row could not remove without going over is added to the next row's share: a row loses
  at most one weight or block more than another, and the matrix what was asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesparse.pattern import Pattern


def keep_highest(scores: Tensor, pattern: Pattern) -> Tensor:
    """Return the keep mask, bool [N, K], of the highest scores under ``pattern``.

    N:M groups lie along the columns; blocks and single weights compete over the whole matrix.
    Equal scores are decided by position, so that the count is exact and the result repeatable.

    Args:
        scores: float [N, K], not NaN; higher is kept.
        pattern: The pattern.
    """
    if pattern.is_dense or not scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if pattern.n_of_m:
        return _n_of_m(scores, *pattern.n_of_m)
    if pattern.block == (1, 1):
        remove = int(pattern.sparsity * scores.numel() + 1e-9)
        return _without_lowest(scores.flatten(), remove).reshape(scores.shape)
    return _blocks(scores, pattern.block, pattern.sparsity * scores.numel())


def grown(pattern: Pattern, fraction: float) -> Pattern:
    """Return the pattern at a fraction of its sparsity; of N:M, whole weights of each group."""
    if pattern.keep is not None and pattern.of is not None:
        removed = int((pattern.of - pattern.keep) * fraction + 1e-9)
        return Pattern(keep=pattern.of - removed, of=pattern.of)
    return pattern.with_sparsity(pattern.sparsity * fraction)


def keep_highest_by_row(scores: Tensor, pattern: Pattern) -> Tensor:
    """Like ``keep_highest``, but weights compete within their row, blocks within their rows."""
    if pattern.is_dense or pattern.n_of_m or not scores.numel():
        return keep_highest(scores, pattern)
    if pattern.block == (1, 1):
        ends = torch.arange(len(scores) + 1, device=scores.device, dtype=torch.float64)
        ends = (pattern.sparsity * scores.shape[1] * ends + 1e-6).floor().long()
        rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
        return rank >= ends.diff()[:, None]
    parts, share = [], 0.0
    for part in torch.split(scores, pattern.block[0]):
        share += pattern.sparsity * part.numel()
        parts.append(_blocks(part, pattern.block, share))
        share -= int((~parts[-1]).sum())
    return torch.cat(parts)


def _without_lowest(scores: Tensor, remove: int) -> Tensor:
    """Remove the ``remove`` lowest of a vector; equal ones from the front.

    On the CPU by selection, which is linear where a sort is not; on CUDA by sorting, which is
    parallel where selecting from one long vector is not.
    """
    if scores.is_cuda or not remove:
        keep = torch.ones_like(scores, dtype=torch.bool)
        keep[scores.argsort(stable=True)[:remove]] = False
        return keep
    threshold = scores.kthvalue(remove).values
    keep = scores >= threshold
    ties = torch.nonzero(scores == threshold)[:, 0]
    keep[ties[: remove - int((~keep).sum())]] = False
    return keep


def _n_of_m(scores: Tensor, keep: int, of: int) -> Tensor:
    """Keep the ``keep`` highest of every ``of`` neighbours; padding scores below everything."""
    rows, columns = scores.shape
    padding = -columns % of
    padded = torch.nn.functional.pad(scores, (0, padding), value=-torch.inf)
    groups = padded.reshape(rows, -1, of)
    removed = groups.argsort(dim=2, stable=True)[:, :, : of - keep]
    mask = torch.ones_like(groups, dtype=torch.bool).scatter(2, removed, False)
    return mask.reshape(rows, -1)[:, :columns].contiguous()


def _blocks(scores: Tensor, block: tuple[int, int], remove: float) -> Tensor:
    """Remove whole blocks, lowest mean score first, while no more than ``remove`` weights go."""
    rows, columns = scores.shape
    mean, size = block_means(scores, block)
    order = mean.flatten().argsort(stable=True)
    removed_until = size.flatten()[order].cumsum(0)
    keep = torch.empty(mean.numel(), dtype=torch.bool, device=scores.device)
    keep[order] = removed_until > remove + 1e-6
    return spread(keep.reshape(mean.shape), block, (rows, columns))


def block_means(scores: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the mean score and the number of weights of each block, [N / r, K / c] rounded up."""
    padding = (0, -scores.shape[1] % block[1], 0, -scores.shape[0] % block[0])

    def total(values: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(values, padding)
        high, wide = padded.shape[0] // block[0], padded.shape[1] // block[1]
        return padded.reshape(high, block[0], wide, block[1]).sum(dim=(1, 3))

    size = total(torch.ones_like(scores, dtype=torch.float64))
    return total(scores.double()) / size, size


def spread(per_block: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Return a value per weight, [N, K], from one per block."""
    wide = per_block.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]].contiguous()
