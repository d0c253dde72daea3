"""Attention of one new token over a cache of keys and values, and what is done to its heads.

The cache holds keys as [layer, head, dimension, position], so that scores of sixteen positions are
one register, and values as [layer, head, position, dimension]; as float32, or as int8 with one
scale for each head and position. Query heads share those of keys and values in equal groups
(Ainslie et al. 2023, 2305.13245).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesparse_kernels._floats import exp, largest_f, load_bytes, maximum_f, square_root, sum_f
from edgesparse_kernels._jit import jit
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

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


class Shape(NamedTuple):
    """Sizes of a model; ``hidden`` is a multiple of 16, ``head_dim`` of 32.

    ``capacity`` is how many positions the cache has room for, a multiple of 16; ``byte_cache`` is 1
    where it holds int8; ``head_norms`` is 1 where heads have norms.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int
    byte_cache: int
    head_norms: int
    epsilon: float


class Cache(NamedTuple):
    """What was said before.

    keys and values are float32 or int8 as bytes, uint8 [layers, bytes]; key_scales and value_scales
    float32 [layers, kv_heads, capacity], of no use to float32.
    """

    keys: NDArray[np.uint8]
    values: NDArray[np.uint8]
    key_scales: NDArray[np.float32]
    value_scales: NDArray[np.float32]


@jit
def normalize(x, count, weight, epsilon, out):
    """``x / sqrt(mean(x²) + epsilon) * weight`` (RMSNorm: Zhang and Sennrich, 1910.07467)."""
    squares = no_floats()
    for k in range(0, 4 * count, 64):
        squares = fused(load_floats(x + k), load_floats(x + k), squares)
    mean = sum_f(squares) / np.float32(count)
    factor = all_floats(np.float32(1) / square_root(mean + epsilon))
    for k in range(0, 4 * count, 64):
        store_floats(
            out + k, multiply(multiply(load_floats(x + k), factor), load_floats(weight + k))
        )


@jit
def _rotate(x, head_dim, turns):
    """Turn a head by its position: dimension d goes with d + head_dim / 2 (2104.09864)."""
    half = 2 * head_dim
    for k in range(0, half, 64):
        first, second = load_floats(x + k), load_floats(x + half + k)
        cosine, sine = load_floats(turns + k), load_floats(turns + half + k)
        store_floats(x + k, subtract_f(multiply(first, cosine), multiply(second, sine)))
        store_floats(x + half + k, add_f(multiply(second, cosine), multiply(first, sine)))


@jit
def _byte_scale(x, count):
    """Return what one step of int8 is worth for the floats at ``x``."""
    top = np.float32(0)
    for k in range(count):
        top = max(top, abs(load_float(x + 4 * k)))
    return top / np.float32(127)


@jit
def _remember(shape, cache, layer, head, position, key, value):
    """Write a head's key and value at ``position`` of the cache."""
    dims, room = shape.head_dim, shape.capacity
    if shape.byte_cache:
        keys, values = cache.keys[layer].view(np.int8), cache.values[layer].view(np.int8)
        of_key, of_value = _byte_scale(key, dims), _byte_scale(value, dims)
        cache.key_scales[layer, head, position] = of_key
        cache.value_scales[layer, head, position] = of_value
        by_key = np.float32(1) / of_key if of_key > 0 else np.float32(0)
        by_value = np.float32(1) / of_value if of_value > 0 else np.float32(0)
        for d in range(dims):
            turned = np.rint(load_float(key + 4 * d) * by_key)
            keys[(head * dims + d) * room + position] = np.int8(turned)
            turned = np.rint(load_float(value + 4 * d) * by_value)
            values[(head * room + position) * dims + d] = np.int8(turned)
    else:
        keys_at = np.int64(cache.keys[layer].ctypes.data)
        values_at = np.int64(cache.values[layer].ctypes.data)
        for d in range(dims):
            at = 4 * ((head * dims + d) * room + position)
            store_float(keys_at + at, load_float(key + 4 * d))
            at = 4 * ((head * room + position) * dims + d)
            store_float(values_at + at, load_float(value + 4 * d))


@jit
def _load(at, each):
    """Return 16 entries of the cache, of ``each`` bytes, as floats."""
    return load_bytes(at) if each == 1 else load_floats(at)


@jit
def _scores(shape, query, keys, each, key_scales, count, scores):
    """Write scaled products of a query and ``count`` keys; return the largest."""
    scale = all_floats(np.float32(1) / square_root(np.float32(shape.head_dim)))
    stride = each * shape.capacity
    top = all_floats(np.float32(-3e38))
    for block in range(0, count, 16):
        sum0, sum1, sum2, sum3 = no_floats(), no_floats(), no_floats(), no_floats()
        at = keys + each * block
        for d in range(0, 4 * shape.head_dim, 16):
            # Four sums, so that a multiply-add need not wait for the one before.
            sum0 = fused(all_floats(load_float(query + d)), _load(at, each), sum0)
            sum1 = fused(all_floats(load_float(query + d + 4)), _load(at + stride, each), sum1)
            sum2 = fused(all_floats(load_float(query + d + 8)), _load(at + 2 * stride, each), sum2)
            sum3 = fused(all_floats(load_float(query + d + 12)), _load(at + 3 * stride, each), sum3)
            at += 4 * stride
        total = multiply(add_f(add_f(sum0, sum1), add_f(sum2, sum3)), scale)
        if each == 1:
            total = multiply(total, load_floats(key_scales + 4 * block))
        store_floats(scores + 4 * block, total)
        if block + 16 > count:
            for rest in range(count, block + 16):
                store_float(scores + 4 * rest, np.float32(-3e38))
        top = maximum_f(top, load_floats(scores + 4 * block))
    return largest_f(top)


@jit
def _weigh(shape, scores, values, each, count, factor, out):
    """Write ``factor`` times the sum of ``count`` values, each times its score."""
    dims = shape.head_dim
    times = all_floats(factor)
    for d in range(0, dims, 32):
        sum0, sum1, sum2, sum3 = no_floats(), no_floats(), no_floats(), no_floats()
        at = values + each * d
        # Past the last position is a score of no weight and a value of the cache's own.
        for position in range(0, count, 2):
            one = all_floats(load_float(scores + 4 * position))
            two = all_floats(load_float(scores + 4 * position + 4))
            sum0 = fused(one, _load(at, each), sum0)
            sum1 = fused(one, _load(at + 16 * each, each), sum1)
            sum2 = fused(two, _load(at + each * dims, each), sum2)
            sum3 = fused(two, _load(at + each * dims + 16 * each, each), sum3)
            at += 2 * each * dims
        store_floats(out + 4 * d, multiply(add_f(sum0, sum2), times))
        store_floats(out + 4 * d + 64, multiply(add_f(sum1, sum3), times))


@jit
def _attend(shape, cache, layer, head, count, query, scores, out):
    """Attend with one query to ``count`` positions of a head of the cache."""
    each = 1 if shape.byte_cache else 4
    skip = each * head * shape.head_dim * shape.capacity
    keys = np.int64(cache.keys[layer].ctypes.data) + skip
    values = np.int64(cache.values[layer].ctypes.data) + skip
    key_scales = np.int64(cache.key_scales[layer, head].ctypes.data)
    top = all_floats(_scores(shape, query, keys, each, key_scales, count, scores))
    total = no_floats()
    for k in range(0, 4 * count, 64):
        weight = exp(subtract_f(load_floats(scores + k), top))
        total = add_f(total, weight)
        if each == 1:
            value_scales = np.int64(cache.value_scales[layer, head].ctypes.data)
            weight = multiply(weight, load_floats(value_scales + k))
        store_floats(scores + k, weight)
    _weigh(shape, scores, values, each, count, np.float32(1) / sum_f(total), out)


@jit
def _turn_head(shape, turns, norm, at):
    """Give a head its norm, if heads have norms, and its position."""
    if shape.head_norms:
        norm_at = np.int64(norm.ctypes.data)
        normalize(at, shape.head_dim, norm_at, np.float32(shape.epsilon), at)
    _rotate(at, shape.head_dim, turns)


@jit
def mix(shape, turns, head_norms, cache, layer, position, heads, projected, attended, scores):
    """From projected queries, keys and values to what attention makes of them, by address.

    ``turns`` are cosines and sines of the position, ``head_norms`` an array [2 layers, head_dim],
    ``heads`` the first and the end of the heads of keys and values to do, with their queries.
    """
    size, shared = 4 * shape.head_dim, shape.heads // shape.kv_heads
    keys = projected + size * shape.heads
    values = keys + size * shape.kv_heads
    for of in range(heads[0], heads[1]):
        _turn_head(shape, turns, head_norms[2 * layer + 1], keys + size * of)
        _remember(shape, cache, layer, of, position, keys + size * of, values + size * of)
        for head in range(shared * of, shared * (of + 1)):
            query, out = projected + size * head, attended + size * head
            _turn_head(shape, turns, head_norms[2 * layer], query)
            _attend(shape, cache, layer, of, position + 1, query, scores, out)
