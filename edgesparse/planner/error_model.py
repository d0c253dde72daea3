"""What pruning and rounding do to a weight nobody has looked at: the error of a Gaussian matrix.

Before calibration nothing is known of a weight but its shape, and the weights of trained networks
are close to Gaussian. The relative error ``|W - W'|² / |W|²`` of a fixed Gaussian sample, pruned by
magnitude in the pattern and rounded to nearest with the best of a few scales, orders the ways to
spend bytes; solvers that correct errors stay below it by a similar factor everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgesparse.packed import SYMMETRIC, TABLE
from edgesparse.pattern import Pattern

_SHAPE = (64, 1024)
_ITERATIONS = 30  # of means; what is left then is far below what tensors differ by
# Scales tried, as fractions of the one that just reaches the largest weight of a group.
_CLIPS = np.linspace(0.3, 1.0, 15)


@lru_cache(maxsize=1024)
def gaussian_error(bits: int, group_size: int, pattern: Pattern, scheme: str = SYMMETRIC) -> float:
    """Return the expected relative squared error of a weight.

    Args:
        bits: Bits of a code; 16 rounds nothing.
        group_size: Columns per scale; 0 with 16 bits or a table.
        pattern: What is removed.
        scheme: What codes mean; a zero is taken to help nothing, as Gaussian weights have none.
    """
    weight = np.random.default_rng(0).standard_normal(_SHAPE)
    kept = _prune(weight, pattern)
    if scheme == TABLE:
        kept = _look_up(kept, bits)
    elif bits < 16:
        kept = _round(kept, bits, min(group_size, kept.shape[1]))
    weight = weight[: kept.shape[0], : kept.shape[1]]  # what the pattern and groups divide
    return float(((weight - kept) ** 2).sum() / (weight**2).sum())


def gaussian_codes(bits: int, group_size: int, pattern: Pattern) -> NDArray[np.int64]:
    """Return the codes of the weights that stay, of a Gaussian matrix, in no order.

    Args:
        bits: Bits of a code, at most 8.
        group_size: Columns per scale; 0 is one for the whole row.
        pattern: What is removed.
    """
    kept = _prune(np.random.default_rng(0).standard_normal(_SHAPE), pattern)
    size = min(group_size or kept.shape[1], kept.shape[1])
    codes, _ = _quantize(kept, bits, size)
    stays = kept[:, : kept.shape[1] // size * size].reshape(codes.shape) != 0
    chosen: NDArray[np.int64] = codes[stays].astype(np.int64)
    return chosen


def _prune(weight: NDArray[np.float64], pattern: Pattern) -> NDArray[np.float64]:
    """Return ``weight`` with the smallest removed as the pattern says."""
    if pattern.is_dense:
        return weight
    if pattern.n_of_m:
        keep, of = pattern.n_of_m
        columns = weight.shape[1] // of * of
        groups = np.abs(weight[:, :columns]).reshape(len(weight), -1, of)
        rank = (-groups).argsort(axis=2).argsort(axis=2)
        return np.where((rank < keep).reshape(len(weight), columns), weight[:, :columns], 0)
    rows, columns = pattern.block
    blocks = weight[: len(weight) // rows * rows, : weight.shape[1] // columns * columns]
    norms = (blocks**2).reshape(-1, rows, blocks.shape[1] // columns, columns).sum(axis=(1, 3))
    keep_blocks = norms > np.quantile(norms, pattern.sparsity)
    mask = keep_blocks.repeat(rows, axis=0).repeat(columns, axis=1)
    return np.where(mask, blocks, 0)


def _look_up(weight: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Return ``weight`` with what is not 0 moved to the best table of ``2**bits`` entries."""
    values = np.sort(weight[weight != 0])
    entries = np.quantile(values, (np.arange(1 << bits) + 0.5) / (1 << bits))
    for _ in range(_ITERATIONS):
        cuts = np.searchsorted(values, (entries[1:] + entries[:-1]) / 2)
        entries = np.array([part.mean() for part in np.split(values, cuts)])
    index = np.searchsorted((entries[1:] + entries[:-1]) / 2, weight)
    return np.where(weight == 0, 0, entries[index])


def _round(weight: NDArray[np.float64], bits: int, group_size: int) -> NDArray[np.float64]:
    """Return ``weight`` on the signed grid of ``bits`` bits, each group with its best scale."""
    codes, scales = _quantize(weight, bits, group_size)
    return (codes * scales).reshape(len(weight), -1)


def _quantize(
    weight: NDArray[np.float64], bits: int, group_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return codes [groups, group_size] and the best of a few scales for each, [groups, 1]."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    columns = weight.shape[1] // group_size * group_size
    groups = weight[:, :columns].reshape(-1, group_size)
    reach = np.abs(groups).max(axis=1, keepdims=True)
    reach[reach == 0] = 1
    best, scales, error = groups, np.ones_like(reach), np.full(len(groups), np.inf)
    for clip in _CLIPS:
        # -low rather than high: two-bit codes reach one step further below zero than above.
        scale = clip * reach / -low
        codes = np.clip(np.rint(groups / scale), low, high)
        found = ((codes * scale - groups) ** 2).sum(axis=1)
        better = (found < error)[:, None]
        best, scales = np.where(better, codes, best), np.where(better, scale, scales)
        error = np.minimum(error, found)
    return best, scales
