"""How long the longest stream of a tile will be, before there is a mask.

The streams of a plane share bytes, so a tile is as long as the fullest of them. For a random mask
of a pattern the streams' lengths have a mean and a covariance that follow from the pattern alone;
the expectation of their maximum is taken over a fixed normal sample with those moments.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from edgesparse_kernels.layout import QUAD, TILE_ROWS
from numpy.typing import NDArray

from edgesparse.pattern import Pattern

_SAMPLES = 4096  # the error of the mean maximum is then 1/64 of a quantity that is itself about 1 %


def expected_codes(rows: int, columns: int, streams: int, pattern: Pattern) -> float:
    """Return the expected positions of a plane: its longest streams, summed over the tiles."""
    full, rest = divmod(rows, TILE_ROWS)
    total = full * _expected_longest(TILE_ROWS, columns, streams, pattern) if full else 0.0
    return total + (_expected_longest(rest, columns, streams, pattern) if rest else 0.0)


@lru_cache(maxsize=1024)
def _expected_longest(rows: int, columns: int, streams: int, pattern: Pattern) -> float:
    """Return the expected length of the longest stream of one tile with ``rows`` real rows."""
    if columns == 0:
        return 0.0
    mean, covariance = _moments(rows, columns, streams, pattern)
    if not covariance.any():
        return float(mean.max())
    values, vectors = np.linalg.eigh(covariance)
    noise = np.random.default_rng(0).standard_normal((_SAMPLES // 2, streams))
    noise = np.concatenate([noise, -noise])  # antithetic: the sample's mean is exactly zero
    lengths = mean + noise @ (vectors * np.sqrt(np.maximum(values, 0))).T
    return float(lengths.max(axis=1).mean())


def _moments(
    rows: int, columns: int, streams: int, pattern: Pattern
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean [streams] and covariance [streams, streams] of the streams' lengths.

    N:M: of the ``of`` columns of a group ``keep`` are drawn without replacement, a multivariate
    hypergeometric distribution over the streams the columns belong to. Blocks are kept or removed
    whole, each with the same probability; an unstructured mask has blocks of one weight.
    """
    height, width = (1, pattern.of) if pattern.of else pattern.block
    # The columns of each group or block by stream, [groups, streams].
    stream = np.arange(columns) // QUAD % streams
    members = np.eye(streams)[stream]
    members = np.add.reduceat(members, np.arange(0, columns, width or 1), axis=0)
    if pattern.n_of_m:
        size = members.sum(axis=1)
        kept = np.minimum(pattern.n_of_m[0], size)
        share = members / size[:, None]
        spread = rows * kept * (size - kept) / np.maximum(size - 1, 1)
        mean = rows * (kept[:, None] * share).sum(axis=0)
        covariance = (
            np.diag((spread[:, None] * share).sum(axis=0)) - (spread[:, None] * share).T @ share
        )
        return mean, covariance
    keep = 1 - pattern.sparsity
    together = min(height, rows)
    mean = rows * keep * members.sum(axis=0)
    return mean, rows * together * keep * (1 - keep) * (members.T @ members)
