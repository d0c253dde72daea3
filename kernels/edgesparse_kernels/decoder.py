"""One step of a Llama-family model in one compiled function: token in, logits out.

Norms, rotary positions, attention over the cache, gated units and all products run without
returning to Python (Touvron et al. 2023, 2302.13971). Heads may have norms of their own (Qwen 3),
projections may have biases, gated units may be a mixture of experts (Mixtral, Qwen 3 MoE).

Several threads take a step together. Each has the hidden values to itself and computes norms,
digits and routes for itself, which takes less time than waiting for another thread's; of products,
heads and gated units it computes its share, and all meet before anyone reads what was shared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels._floats import divide, exp
from edgesparse_kernels._jit import inlined, jit
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
from edgesparse_kernels.crew import meet
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
    """Room for one thread to work in: float32 vectors, and for products that of their kernels.

    The same arrays for all threads (``SHARED``): projected [(heads + 2 kv_heads) head_dim],
    attended [heads * head_dim], and for ``met`` experts of a token added [met * hidden], gated
    [met * 2 inner]. A thread's own: hidden and normed [hidden], scores [capacity], routed [experts
    rounded up to 16], shares [met], chosen int64 [2, met] matrices, rows int64 [max(3, met)] of
    the scratch, packed int8 [``gather.room_nbytes``].
    """

    projected: NDArray[np.float32]
    attended: NDArray[np.float32]
    added: NDArray[np.float32]
    gated: NDArray[np.float32]
    hidden: NDArray[np.float32]
    normed: NDArray[np.float32]
    scores: NDArray[np.float32]
    routed: NDArray[np.float32]
    shares: NDArray[np.float32]
    chosen: NDArray[np.int64]
    rows: NDArray[np.int64]
    packed: NDArray[np.int8]
    scratch: Scratch


SHARED = "projected", "attended", "added", "gated"


class Place(NamedTuple):
    """One of the threads that take a step together: its number, theirs, where they meet."""

    thread: int
    threads: int
    meeting: int


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


@jit
def _share(count, place):
    """Return the first and the end of a thread's share of ``count`` things."""
    return count * place.thread // place.threads, count * (place.thread + 1) // place.threads


@inlined
def _product(isa, numbers, planes, digits, x, out, room, place):
    """Compute a thread's rows of one product, by digits or, of float weights, from ``x``."""
    m = _operand(numbers)
    first, end = _share((m.rows + 15) // 16, place)
    at = np.int64(digits.digits.ctypes.data)
    if numbers[FLOATS_AT]:
        float_rows(numbers[FLOATS_AT], m.columns, x, out, 16 * first, min(16 * end, m.rows))
    elif numbers[LAYOUT_AT]:
        packed = np.int64(room.packed.ctypes.data)
        gather_tiles(
            isa, _structured(numbers), planes, at, digits.scales[0], packed, out, first, end
        )
    else:
        one_row(isa, m, planes, at, digits, 0, out, first, end)
    bias = numbers[BIAS_AT]
    if bias:
        for row in range(16 * first, min(16 * end, m.rows)):
            store_float(out + 4 * row, load_float(out + 4 * row) + load_float(bias + 4 * row))


@jit
def _products(isa, matrices, chosen, planes, x, apart, out, room, place):
    """Multiply the matrices ``chosen`` by activations that lie ``apart`` bytes from each other.

    If that is 0 they are the same, and digits are made once for equal groups. Results follow each
    other at ``out``.
    """
    rows, scratch = room.rows, room.scratch
    for i in range(len(chosen)):
        numbers = matrices[chosen[i]]
        m, at = _operand(numbers), x + apart * i
        rows[i] = i
        if i and not apart and matrices[chosen[i - 1], 3] == m.group_size:
            rows[i] = rows[i - 1]
        elif m.groups:
            quantize(m, planes, at, scratch.digits[i], scratch.scales[i], scratch.sums[i])
        digits = _from_row(scratch, rows[i])
        _product(isa, numbers, planes, digits, at, out, room, place)
        out += 4 * m.rows


@jit
def _gate(gated, inner, place):
    """``silu(gate) * up`` in the place of a thread's share of the gate (Shazeer, 2002.05202)."""
    one = all_floats(np.float32(1))
    first, end = _share(inner // 16, place)
    for k in range(64 * first, 64 * end, 64):
        gate, up = load_floats(gated + k), load_floats(gated + 4 * inner + k)
        below = add_f(one, exp(subtract_f(no_floats(), gate)))
        store_floats(gated + k, multiply(divide(gate, below), up))


@jit
def _add(x, more, count):
    for k in range(0, 4 * count, 64):
        store_floats(x + k, add_f(load_floats(x + k), load_floats(more + k)))


@jit
def _attend(isa, shape, weights, cache, planes, layer, position, turn, room, place):
    """Add to the hidden values what attention says of a layer; return the next turn."""
    hidden, normed = np.int64(room.hidden.ctypes.data), np.int64(room.normed.ctypes.data)
    projected, attended = np.int64(room.projected.ctypes.data), np.int64(room.attended.ctypes.data)
    added, first = np.int64(room.added.ctypes.data), weights.layers[layer, 0]
    norm = np.int64(weights.norms[2 * layer].ctypes.data)
    normalize(hidden, shape.hidden, norm, np.float32(shape.epsilon), normed)
    some = weights.order[first : first + 3]
    _products(isa, weights.matrices, some, planes, normed, 0, projected, room, place)
    turn = meet(place.meeting, turn, place.threads)
    turns = np.int64(weights.rotary[position].ctypes.data)
    scores, heads = np.int64(room.scores.ctypes.data), _share(shape.kv_heads, place)
    mix(
        shape, turns, weights.head_norms, cache, layer, position, heads, projected, attended, scores
    )
    turn = meet(place.meeting, turn, place.threads)
    some = weights.order[first + 3 : first + 4]
    _products(isa, weights.matrices, some, planes, attended, 0, added, room, place)
    turn = meet(place.meeting, turn, place.threads)
    _add(hidden, added, shape.hidden)
    return turn


@jit
def _think(isa, shape, weights, planes, layer, turn, room, place):
    """Add to the hidden values what the gated units of a layer say; return the next turn."""
    hidden, normed = np.int64(room.hidden.ctypes.data), np.int64(room.normed.ctypes.data)
    gated, added = np.int64(room.gated.ctypes.data), np.int64(room.added.ctypes.data)
    table, order, own = weights.matrices, weights.order, weights.layers[layer]
    first, inner, experts, met = own[0], own[1], own[2], own[3]
    norm = np.int64(weights.norms[2 * layer + 1].ctypes.data)
    normalize(hidden, shape.hidden, norm, np.float32(shape.epsilon), normed)
    if experts:
        route(table[first + 4], FLOATS_AT, normed, first + 5, met, own[4], room)
        up, down = room.chosen[0, :met], room.chosen[1, :met]
    else:
        up, down = order[first + 4 : first + 6], order[first + 6 : first + 7]
    _products(isa, table, up, planes, normed, 0, gated, room, place)
    turn = meet(place.meeting, turn, place.threads)
    for i in range(met):
        _gate(gated + 8 * inner * i, inner, place)
    turn = meet(place.meeting, turn, place.threads)
    _products(isa, table, down, planes, gated, 8 * inner, added, room, place)
    turn = meet(place.meeting, turn, place.threads)
    if experts:
        add_shares(hidden, added, room.shares, met, shape.hidden)
    else:
        _add(hidden, added, shape.hidden)
    return turn


@jit
def step(isa, shape, weights, cache, planes, place, turn, position, room, x, logits):
    """Take a thread's part in reading the token whose embedding is ``x`` [hidden] at ``position``.

    ``logits`` [vocabulary] of what follows are written unless it is empty; they are whole when any
    of the threads returns. ``turn`` is how often they have met, and what is returned is how often
    then. On one thread nobody is met.
    """
    room.hidden[:] = x
    for layer in range(shape.layers):
        turn = _attend(isa, shape, weights, cache, planes, layer, position, turn, room, place)
        turn = _think(isa, shape, weights, planes, layer, turn, room, place)
    if logits.size:
        hidden, normed = np.int64(room.hidden.ctypes.data), np.int64(room.normed.ctypes.data)
        norm = np.int64(weights.norms[2 * shape.layers].ctypes.data)
        normalize(hidden, shape.hidden, norm, np.float32(shape.epsilon), normed)
        out, head = np.int64(logits.ctypes.data), weights.order[len(weights.order) - 1 :]
        _products(isa, weights.matrices, head, planes, normed, 0, out, room, place)
        turn = meet(place.meeting, turn, place.threads)
    return turn
