"""One step of a Llama-family model in one compiled function: token in, logits out.

Norms, rotary positions, attention over the cache, gated units and all products run without
returning to Python (Touvron et al. 2023, 2302.13971). Heads may have norms of their own (Qwen 3),
projections may have biases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgesparse_kernels._floats import divide, exp, sum_f
from edgesparse_kernels._jit import inlined, jit, serial_and_parallel, twice
from edgesparse_kernels._simd import (
    add_f,
    all_floats,
    fused,
    load_float,
    load_floats,
    multiply,
    no_floats,
    store_float,
    store_floats,
    subtract_f,
)
from edgesparse_kernels.attention import mix, normalize
from edgesparse_kernels.tiled import one_row
from edgesparse_kernels.tiles import Operand, Scratch, quantize

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

FIELDS = 16
"""Numbers of a matrix: those of an Operand, then float32 weights, then a bias (addresses or 0)."""
FLOATS_AT, BIAS_AT = 13, 14
PROJECTIONS = 7  # of a layer: query, key, value, output, gate, up, down; after all layers the head


class Weights(NamedTuple):
    """What a model is made of.

    matrices int64 [7 layers + 1, FIELDS]; norms float32 [2 layers + 1, hidden], head_norms
    [2 layers, head_dim]; rotary float32 [capacity, 2, head_dim / 2], cosines and sines.
    """

    matrices: NDArray[np.int64]
    norms: NDArray[np.float32]
    head_norms: NDArray[np.float32]
    rotary: NDArray[np.float32]


class Room(NamedTuple):
    """Room to work in: float32 vectors, and for products that of their kernels.

    normed and added [hidden], projected [(heads + 2 kv_heads) head_dim], attended
    [heads * head_dim], gated [2 inner], scores [capacity], rows int64 [3].
    """

    normed: NDArray[np.float32]
    added: NDArray[np.float32]
    projected: NDArray[np.float32]
    attended: NDArray[np.float32]
    gated: NDArray[np.float32]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    scratch: Scratch


@jit
def _operand(numbers):
    """Return the numbers of a matrix by name."""
    return Operand(
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
        numbers[7], numbers[8], numbers[9], numbers[10], numbers[11], numbers[12],
    )  # fmt: skip


@jit
def _float_rows(weights, columns, x, out, first, last):
    """Rows ``first:last`` of float32 weights by ``x``; columns are a multiple of 16."""
    for row in range(first, last):
        total, at = no_floats(), weights + 4 * row * columns
        for k in range(0, 4 * columns, 64):
            total = fused(load_floats(at + k), load_floats(x + k), total)
        store_float(out + 4 * row, sum_f(total))


@jit
def _from_row(scratch, row):
    """Return the room of a call whose first row of digits is ``row``."""
    return Scratch(
        scratch.digits[row:], scratch.scales[row:], scratch.sums[row:], scratch.lanes,
        scratch.streams, scratch.totals, scratch.acc,
    )  # fmt: skip


@inlined
def _share(isa, matrices, first, count, planes, x, out, rows, scratch, thread, threads):
    """Compute a thread's rows of ``count`` products, whose results follow each other at ``out``."""
    for i in range(first, first + count):
        m = _operand(matrices[i])
        tiles = (m.rows + 15) // 16
        begin, end = tiles * thread // threads, tiles * (thread + 1) // threads
        if matrices[i, FLOATS_AT]:
            last = min(16 * end, m.rows)
            _float_rows(matrices[i, FLOATS_AT], m.columns, x, out, 16 * begin, last)
        else:
            mine = _from_row(scratch, rows[i - first])
            digits = np.int64(mine.digits.ctypes.data)
            one_row(isa, m, planes, digits, mine, thread, out, begin, end)
        bias = matrices[i, BIAS_AT]
        if bias:
            for row in range(16 * begin, min(16 * end, m.rows)):
                store_float(out + 4 * row, load_float(out + 4 * row) + load_float(bias + 4 * row))
        out += 4 * m.rows


def _products(isa, matrices, first, count, planes, x, out, rows, scratch, threads):
    """Multiply ``count`` matrices by the same ``x``; digits are made once for equal groups."""
    for i in range(count):
        m = _operand(matrices[first + i])
        rows[i] = i
        if i and matrices[first + i - 1, 3] == m.group_size:
            rows[i] = rows[i - 1]
        if rows[i] == i and m.groups:
            quantize(m, planes, x, scratch.digits[i], scratch.scales[i], scratch.sums[i])
    for thread in prange(threads):
        _share(isa, matrices, first, count, planes, x, out, rows, scratch, thread, threads)


products, products_parallel = serial_and_parallel(_products)


@jit
def _gate(gated, inner):
    """``silu(gate) * up`` in the place of the gate (Shazeer, 2002.05202)."""
    one = all_floats(np.float32(1))
    for k in range(0, 4 * inner, 64):
        gate, up = load_floats(gated + k), load_floats(gated + 4 * inner + k)
        below = add_f(one, exp(subtract_f(no_floats(), gate)))
        store_floats(gated + k, multiply(divide(gate, below), up))


@jit
def _add(x, more, count):
    for k in range(0, 4 * count, 64):
        store_floats(x + k, add_f(load_floats(x + k), load_floats(more + k)))


def _step(isa, shape, weights, cache, planes, threads, position, room, x, logits):
    """Read the token whose embedding is ``x`` [hidden] at ``position``; x is used up.

    ``logits`` [vocabulary] of what follows are written unless it is empty.
    """
    epsilon, hidden = np.float32(shape.epsilon), shape.hidden
    x_at, added = np.int64(x.ctypes.data), np.int64(room.added.ctypes.data)
    normed, projected = np.int64(room.normed.ctypes.data), np.int64(room.projected.ctypes.data)
    attended, gated = np.int64(room.attended.ctypes.data), np.int64(room.gated.ctypes.data)
    scores, table = np.int64(room.scores.ctypes.data), weights.matrices
    for layer in range(shape.layers):
        first = PROJECTIONS * layer
        norm = np.int64(weights.norms[2 * layer].ctypes.data)
        normalize(x_at, hidden, norm, epsilon, normed)
        products(isa, table, first, 3, planes, normed, projected, room.rows, room.scratch, threads)
        turns = np.int64(weights.rotary[position].ctypes.data)
        mix(shape, turns, weights.head_norms, cache, layer, position, projected, attended, scores)
        products(
            isa, table, first + 3, 1, planes, attended, added, room.rows, room.scratch, threads
        )
        _add(x_at, added, hidden)
        norm = np.int64(weights.norms[2 * layer + 1].ctypes.data)
        normalize(x_at, hidden, norm, epsilon, normed)
        products(isa, table, first + 4, 2, planes, normed, gated, room.rows, room.scratch, threads)
        _gate(gated, shape.inner)
        products(isa, table, first + 6, 1, planes, gated, added, room.rows, room.scratch, threads)
        _add(x_at, added, hidden)
    if logits.size:
        norm = np.int64(weights.norms[2 * shape.layers].ctypes.data)
        normalize(x_at, hidden, norm, epsilon, normed)
        head, out = PROJECTIONS * shape.layers, np.int64(logits.ctypes.data)
        products(isa, table, head, 1, planes, normed, out, room.rows, room.scratch, threads)


step, step_parallel = twice(_step, "products", products_parallel)
