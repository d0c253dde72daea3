"""One step of a Llama-family model in one compiled function: token in, logits out.

Norms, rotary positions, attention over the cache, gated units and all products run without
returning to Python (Touvron et al. 2023, 2302.13971). Heads may have norms of their own (Qwen 3),
projections may have biases, gated units may be a mixture of experts (Mixtral, Qwen 3 MoE).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from edgesparse_kernels._floats import divide, exp
from edgesparse_kernels._jit import inlined, jit, serial_and_parallel, twice
from edgesparse_kernels._simd import (
    add_f,
    all_floats,
    load_float,
    load_floats,
    multiply,
    no_floats,
    store_float,
    store_floats,
    subtract_f,
)
from edgesparse_kernels.attention import mix, normalize
from edgesparse_kernels.gather import GatherOperand, gather_tiles
from edgesparse_kernels.mixture import add_shares, float_rows, route
from edgesparse_kernels.tiled import one_row
from edgesparse_kernels.tiles import Operand, Scratch, quantize

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

FIELDS = 19
"""Numbers of a matrix: those of an Operand; addresses, or 0, of float32 weights and of a bias; for
a structured mask 1 + its layout, n of 64, addresses of places and of what is kept, else 0."""
FLOATS_AT, BIAS_AT, LAYOUT_AT, OF_64_AT, PLACES_AT, KEPT_AT = 13, 14, 15, 16, 17, 18


class Weights(NamedTuple):
    """What a model is made of.

    matrices int64 [count, FIELDS]: of each layer query, key, value, output, then gate, up, down or
    the router (floats), gate and up of every expert in one, down of every expert; last the head.
    layers int64 [layers, 5]: a layer's first matrix, its gated units, its experts (0: no mixture),
    how many a token meets (1), whether their shares add up to 1. order is 0, 1, … to take
    consecutive matrices from. norms float32 [2 layers + 1, hidden], head_norms
    [2 layers, head_dim]; rotary float32 [capacity, 2, head_dim / 2], cosines and sines.
    """

    matrices: NDArray[np.int64]
    layers: NDArray[np.int64]
    order: NDArray[np.int64]
    norms: NDArray[np.float32]
    head_norms: NDArray[np.float32]
    rotary: NDArray[np.float32]


class Room(NamedTuple):
    """Room to work in: float32 vectors, and for products that of their kernels.

    normed [hidden], projected [(heads + 2 kv_heads) head_dim], attended [heads * head_dim], scores
    [capacity]; for ``met`` experts of a token added [met * hidden], gated [met * 2 inner], shares
    [met]; routed [experts rounded up to 16]; chosen int64 [2, met] matrices, rows int64 [max(3,
    met)] of the scratch; packed int8 [threads, ``gather.room_nbytes``].
    """

    normed: NDArray[np.float32]
    added: NDArray[np.float32]
    projected: NDArray[np.float32]
    attended: NDArray[np.float32]
    gated: NDArray[np.float32]
    scores: NDArray[np.float32]
    routed: NDArray[np.float32]
    shares: NDArray[np.float32]
    chosen: NDArray[np.int64]
    rows: NDArray[np.int64]
    packed: NDArray[np.int8]
    scratch: Scratch


@jit
def _operand(numbers):
    """Return the numbers of a matrix by name."""
    return Operand(
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6],
        numbers[7], numbers[8], numbers[9], numbers[10], numbers[11], numbers[12],
    )  # fmt: skip


@jit
def _structured(numbers):
    """Return the numbers of a matrix with a structured mask by name."""
    return GatherOperand(
        numbers[LAYOUT_AT] - 1, numbers[0], numbers[1], numbers[3], numbers[4], numbers[5],
        numbers[OF_64_AT], numbers[PLACES_AT], numbers[KEPT_AT], numbers[8], numbers[9],
        numbers[12],
    )  # fmt: skip


def structured_numbers(m: GatherOperand) -> list[int]:
    """Return what the table holds of a matrix with a structured mask: ``_structured`` reads it."""
    numbers = [0] * FIELDS
    numbers[:6] = m.rows, m.columns, 4, m.group_size, m.groups, m.quads
    numbers[8], numbers[9], numbers[12] = m.codes, m.offsets, m.scales
    numbers[LAYOUT_AT:] = 1 + m.layout, m.of_64, m.places, m.kept
    return numbers


@jit
def _from_row(scratch, row):
    """Return the room of a call whose first row of digits is ``row``."""
    return Scratch(
        scratch.digits[row:], scratch.scales[row:], scratch.sums[row:], scratch.lanes,
        scratch.streams, scratch.totals, scratch.acc,
    )  # fmt: skip


@inlined
def _share(isa, matrices, chosen, planes, x, apart, out, rows, packed, scratch, thread, threads):
    """Compute a thread's rows of the chosen products; results follow each other at ``out``."""
    for i in range(len(chosen)):
        numbers = matrices[chosen[i]]
        m = _operand(numbers)
        tiles = (m.rows + 15) // 16
        begin, end = tiles * thread // threads, tiles * (thread + 1) // threads
        mine = _from_row(scratch, rows[i])
        digits = np.int64(mine.digits.ctypes.data)
        if numbers[FLOATS_AT]:
            last = min(16 * end, m.rows)
            float_rows(numbers[FLOATS_AT], m.columns, x + apart * i, out, 16 * begin, last)
        elif numbers[LAYOUT_AT]:
            at, g = np.int64(packed[thread].ctypes.data), _structured(numbers)
            gather_tiles(isa, g, planes, digits, mine.scales[0], at, out, begin, end)
        else:
            one_row(isa, m, planes, digits, mine, thread, out, begin, end)
        bias = numbers[BIAS_AT]
        if bias:
            for row in range(16 * begin, min(16 * end, m.rows)):
                store_float(out + 4 * row, load_float(out + 4 * row) + load_float(bias + 4 * row))
        out += 4 * m.rows


def _products(isa, matrices, chosen, planes, x, apart, out, rows, packed, scratch, threads):
    """Multiply the matrices ``chosen`` by activations that lie ``apart`` bytes from each other.

    If that is 0 they are the same, and digits are made once for equal groups.
    """
    for i in range(len(chosen)):
        m = _operand(matrices[chosen[i]])
        rows[i] = i
        if i and not apart and matrices[chosen[i - 1], 3] == m.group_size:
            rows[i] = rows[i - 1]
        if rows[i] == i and m.groups:
            at = x + apart * i
            quantize(m, planes, at, scratch.digits[i], scratch.scales[i], scratch.sums[i])
    for thread in prange(threads):
        _share(isa, matrices, chosen, planes, x, apart, out, rows, packed, scratch, thread, threads)


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
    scores, table, order = np.int64(room.scores.ctypes.data), weights.matrices, weights.order
    work = room.rows, room.packed, room.scratch  # in parts: no tuple of tuples reaches threads
    for layer in range(shape.layers):
        own = weights.layers[layer]
        first, inner, experts, met = own[0], own[1], own[2], own[3]
        norm = np.int64(weights.norms[2 * layer].ctypes.data)
        normalize(x_at, hidden, norm, epsilon, normed)
        some = order[first : first + 3]
        products(isa, table, some, planes, normed, 0, projected, *work, threads)
        turns = np.int64(weights.rotary[position].ctypes.data)
        mix(shape, turns, weights.head_norms, cache, layer, position, projected, attended, scores)
        some = order[first + 3 : first + 4]
        products(isa, table, some, planes, attended, 0, added, *work, threads)
        _add(x_at, added, hidden)
        norm = np.int64(weights.norms[2 * layer + 1].ctypes.data)
        normalize(x_at, hidden, norm, epsilon, normed)
        if experts:
            route(table[first + 4], FLOATS_AT, normed, first + 5, met, own[4], room)
            up, down = room.chosen[0, :met], room.chosen[1, :met]
        else:
            up, down = order[first + 4 : first + 6], order[first + 6 : first + 7]
        products(isa, table, up, planes, normed, 0, gated, *work, threads)
        for i in range(met):
            _gate(gated + 8 * inner * i, inner)
        products(isa, table, down, planes, gated, 8 * inner, added, *work, threads)
        if experts:
            add_shares(x_at, added, room.shares, met, hidden)
        else:
            _add(x_at, added, hidden)
    if logits.size:
        norm = np.int64(weights.norms[2 * shape.layers].ctypes.data)
        normalize(x_at, hidden, norm, epsilon, normed)
        out, head = np.int64(logits.ctypes.data), order[len(order) - 1 :]
        products(isa, table, head, planes, normed, 0, out, *work, threads)


step, step_parallel = twice(_step, "products", products_parallel)
