"""A mixture of experts: which of them a token meets, and the sum of what they say.

The router is float32: a product with every expert's row, shares by softmax, the largest few taken
(Shazeer et al. 2017, 1701.06538; as Mixtral has it, 2401.04088).
"""

from __future__ import annotations

import numpy as np

from edgesparse_kernels._floats import exp, sum_f
from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import (
    add_f,
    all_floats,
    fused,
    load_floats,
    multiply,
    no_floats,
    store_float,
    store_floats,
    subtract_f,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@jit
def float_rows(weights, columns, x, out, first, last):
    """Rows ``first:last`` of float32 weights by ``x``; columns are a multiple of 16."""
    for row in range(first, last):
        total, at = no_floats(), weights + 4 * row * columns
        for k in range(0, 4 * columns, 64):
            total = fused(load_floats(at + k), load_floats(x + k), total)
        store_float(out + 4 * row, sum_f(total))


@jit
def _soften(scores, count):
    """Turn ``count`` scores into what is proportional to their softmax; return the sum.

    ``scores`` float32 has room for whole registers; what is past ``count`` becomes 0.
    """
    at = np.int64(scores.ctypes.data)
    top = scores[0]
    for i in range(1, count):
        top = max(top, scores[i])
    for i in range(0, 4 * count, 64):
        store_floats(at + i, exp(subtract_f(load_floats(at + i), all_floats(top))))
    scores[count:] = 0
    total = no_floats()
    for i in range(0, 4 * count, 64):
        total = add_f(total, load_floats(at + i))
    return sum_f(total)


@jit
def route(numbers, floats_at, x, experts_at, met, whole, room):
    """Choose the ``met`` likeliest experts of a token, equal ones in their order.

    Args:
        numbers: Those of the router's matrix; its weights are at ``numbers[floats_at]``.
        floats_at: Where.
        x: Address of what the layer reads.
        experts_at: The first expert's matrix of gate and up; those of down follow the last.
        met: How many to choose, at most as many as there are.
        whole: Whether the shares of the chosen add up to 1, not those of all.
        room: Gets ``shares`` and, as places of matrices, ``chosen``.
    """
    count, columns = numbers[0], numbers[1]
    scores = room.routed
    float_rows(numbers[floats_at], columns, x, np.int64(scores.ctypes.data), 0, count)
    total = _soften(scores, count)
    kept = np.float32(0)
    for place in range(met):
        best = 0  # also where all are NaN: a place outside of the table is never read
        for expert in range(1, count):
            if scores[expert] > scores[best]:
                best = expert
        room.chosen[0, place] = experts_at + best
        room.chosen[1, place] = experts_at + count + best
        room.shares[place] = scores[best]
        kept += scores[best]
        scores[best] = -1
    room.shares[:met] /= kept if whole else total


@jit
def add_shares(x, outputs, shares, met, hidden):
    """``x += sum(shares[i] * outputs[i])``, [hidden] at addresses."""
    for k in range(0, 4 * hidden, 64):
        total = no_floats()
        for i in range(met):
            part = load_floats(outputs + 4 * hidden * i + k)
            total = add_f(total, multiply(part, all_floats(shares[i])))
        store_floats(x + k, add_f(load_floats(x + k), total))
