"""Which of several scales rounds a group of weights with the least error.

A search tries some thirty scales on every weight of a model. Written with whole arrays each trial
is seven passes over memory; here a weight is read once and the trials are lanes of one register.
Sums run over the columns in order, so the choice does not depend on the width of a register.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels._jit import is_enabled, jit

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_LANES = 16
_ROUNDS = np.float32(1.5 * 2**23)  # added and taken off again: the nearest whole number
_FAR = np.float32(1 << 16)  # beyond every code, and small enough to be rounded so
_WORTH_A_THREAD = 1 << 20  # trials


def least_error(
    weight: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32] | None,
    importance: NDArray[np.float32] | None,
    *,
    lowest: int,
    highest: int,
    threads: int = 1,
) -> NDArray[np.int64]:
    """Return for each row the first trial of least ``sum(importance · error²)``, int64 [N].

    A weight w becomes ``(clamp(round(w / scale) + zero) - zero) · scale``, ties to even.

    Args:
        weight: float32 [N, g], finite.
        scales: float32 [N, S], positive.
        zeros: Whole numbers, float32 [N, S]; None for all 0.
        importance: float32 [g], not negative; None counts all alike.
        lowest: The lowest code.
        highest: The highest code.
        threads: How many may work.
    """
    if importance is None:
        importance = np.ones(weight.shape[1], np.float32)
    if zeros is None:
        zeros = np.zeros((1, scales.shape[1]), np.float32)
    zeros = np.broadcast_to(zeros, scales.shape)
    codes, weight = (np.float32(lowest), np.float32(highest)), np.ascontiguousarray(weight)
    if not is_enabled():
        return np.asarray(_reference(weight, scales, zeros, importance, *codes), np.int64)
    chosen = np.zeros(len(weight), np.int64)
    threads = min(threads, 1 + weight.size * scales.shape[1] // _WORTH_A_THREAD)
    parts = [np.arange(i, len(weight), threads) for i in range(threads)]
    scales, zeros = _padded(scales), _padded(zeros)
    if threads == 1:
        _choose(weight, scales, zeros, importance, *codes, parts[0], chosen)
        return chosen
    with ThreadPoolExecutor(threads) as pool:
        for done in [
            pool.submit(_choose, weight, scales, zeros, importance, *codes, part, chosen)
            for part in parts
        ]:
            done.result()
    return chosen


def _padded(trials: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [N, S] with the last trial repeated up to whole registers: no choice is changed."""
    missing = -trials.shape[1] % _LANES
    return np.ascontiguousarray(np.pad(trials, ((0, 0), (0, missing)), mode="edge"))


def _reference(weight, scales, zeros, importance, lowest, highest):
    """The same in NumPy."""
    wide, scale, zero = weight[:, None, :], scales[:, :, None], zeros[:, :, None]
    codes = np.clip(np.rint(wide / scale) + zero, lowest, highest)
    error = (codes - zero) * scale - wide
    return (error * error @ importance).argmin(1)


@jit
def _choose(weight, scales, zeros, importance, lowest, highest, rows, chosen):
    """Write the choice for each of ``rows`` into ``chosen``."""
    columns, trials = weight.shape[1], scales.shape[1]
    costs = np.empty(trials, np.float32)
    for row in rows:
        costs[:] = np.float32(0)
        scale, zero = scales[row], zeros[row]
        for column in range(columns):
            w, counts = weight[row, column], importance[column]
            for i in range(trials):
                code = min(max(w / scale[i], -_FAR), _FAR)
                code = (code + _ROUNDS) - _ROUNDS + zero[i]
                code = min(max(code, lowest), highest)
                error = (code - zero[i]) * scale[i] - w
                costs[i] += counts * (error * error)
        best = 0
        for i in range(1, trials):
            if costs[i] < costs[best]:
                best = i
        chosen[row] = best
