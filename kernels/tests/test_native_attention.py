"""Attention in C++ against NumPy in double precision; every instruction set gives the same bits."""

from __future__ import annotations

import platform
import struct
import subprocess

import numpy as np
import pytest

QEMU = "qemu-aarch64-static"
IS_X86 = platform.machine() in ("x86_64", "AMD64")
HOST = {"scalar": 0, "avx2": 1, "avx512": 2} if IS_X86 else {"scalar": 0, "neon": 3}
LEAST = np.finfo(np.float32).min

# heads, cached heads, tokens, positions, width
SHAPES = [
    (8, 4, 1, 256, 64),
    (2, 2, 5, 17, 16),
    (6, 2, 3, 40, 20),
    (3, 1, 2, 1, 7),
    (4, 4, 32, 33, 8),
]


def attend(command, query, keys, values, *, mask=None, scaling=0.25, isa=0):
    """Return (out [T, H, D], the query's rows int8) of the built program; None when refused."""
    heads, tokens, width = query.shape
    sizes = (heads, keys.shape[0], tokens, keys.shape[1], width, keys.dtype == np.int8, isa)
    case = struct.pack("<8qf", *map(int, sizes), mask is not None, scaling)
    case += query.tobytes() + keys.tobytes() + values.tobytes()
    case += b"" if mask is None else mask.tobytes()
    done = subprocess.run(command, input=case, capture_output=True)
    if done.returncode == 2:
        return None
    assert done.returncode == 0, done.stderr.decode()
    out = np.frombuffer(done.stdout[: 4 * query.size], np.float32)
    rows = np.frombuffer(done.stdout[4 * query.size :], np.int8)
    return out.reshape(tokens, heads, width), rows.reshape(heads, tokens, width + 4)


def byte_rows(x):
    """The rows of an int8 cache: codes, then the scale they share."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.rint(x * inverse).astype(np.int8)
    return np.concatenate([codes, np.ascontiguousarray(scale).view(np.int8)], axis=-1)


def decoded(rows):
    scales = np.ascontiguousarray(rows[..., -4:]).view(np.float32)
    return rows[..., :-4].astype(np.float64) * scales


def reference(query, keys, values, mask, scaling):
    """softmax(scaling q k' + mask) v in float64, [T, H, D]."""
    heads = query.shape[0]
    keys, values = (
        np.repeat(x, heads // len(x), axis=0).astype(np.float64) for x in (keys, values)
    )
    scores = np.float64(np.float32(scaling)) * query @ keys.transpose(0, 2, 1)
    scores = scores if mask is None else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ values).transpose(1, 0, 2)


def draw(shape, seed=0):
    heads, cached, tokens, positions, width = shape
    rng = np.random.default_rng(seed)
    sizes = ((heads, tokens, width), (cached, positions, width), (cached, positions, width))
    return [rng.standard_normal(size).astype(np.float32) * 2 for size in sizes]


def causal(tokens, positions):
    """Token t sees all positions up to the last ones but tokens - 1 - t."""
    visible = np.arange(positions) <= positions - tokens + np.arange(tokens)[:, None]
    visible[:, 0] = True
    return np.where(visible, 0, LEAST).astype(np.float32)


@pytest.fixture(scope="session")
def host(host_build):
    return [str(host_build / "edgesparse_run_attention")]


@pytest.fixture(scope="session")
def aarch64(aarch64_build):
    return [QEMU, "-cpu", "max", str(aarch64_build / "edgesparse_run_attention")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_byte", [False, True])
def test_it_is_attention_with_the_same_bits_everywhere(host, shape, masked, is_byte):
    query, keys, values = draw(shape)
    mask = causal(shape[2], shape[3]) if masked else None
    expected_rows = byte_rows(query)
    if is_byte:
        keys, values = byte_rows(keys), byte_rows(values)
    exact = [decoded(x) if is_byte else x for x in (keys, values)]
    expected = reference(query, *exact, mask, 0.25)
    found = [attend(host, query, keys, values, mask=mask, isa=isa) for isa in HOST.values()]
    results = [each for each in found if each is not None]
    assert results
    for out, rows in results:
        assert np.abs(out - expected).max() < 4e-6
        assert np.array_equal(rows, expected_rows)
        assert np.array_equal(out, results[0][0])


@pytest.mark.parametrize("is_byte", [False, True])
def test_aarch64_gives_the_same_bits(host, aarch64, is_byte):
    query, keys, values = draw((6, 2, 3, 40, 20))
    if is_byte:
        keys, values = byte_rows(keys), byte_rows(values)
    mask = causal(3, 40)
    ours, theirs = (attend(command, query, keys, values, mask=mask) for command in (host, aarch64))
    assert np.array_equal(ours[0], theirs[0])
    assert np.array_equal(ours[1], theirs[1])


def test_by_hand(host):
    """One head, two positions: equal scores weigh alike, a masked one not at all."""
    query, values = np.zeros((1, 1, 2), np.float32), np.array([[[1, 2], [3, 6]]], np.float32)
    out, _ = attend(host, query, np.ones_like(values), values)
    assert out.tolist() == [[[2, 4]]]
    out, _ = attend(
        host, query, np.ones_like(values), values, mask=np.array([[0, LEAST]], np.float32)
    )
    assert out.tolist() == [[[1, 2]]]


def test_masked_positions_are_not_read(host):
    """What lies there may be anything: memory that was never written."""
    query, keys, values = draw((4, 2, 2, 20, 16))
    mask = causal(2, 20)
    mask[:, 5] = LEAST
    expected, _ = attend(host, query, keys, values, mask=mask)
    keys[:, 5], values[:, 5] = np.nan, np.inf
    found, _ = attend(host, query, keys, values, mask=mask)
    assert np.array_equal(found, expected)


def test_rows_that_are_tiny_zero_or_not_finite(host):
    query = np.ones((4, 1, 3), np.float32)
    query[0], query[1], query[2, 0, 1] = 0, 1e-38, np.nan
    cache = np.ones((4, 1, 3), np.float32)
    _, rows = attend(host, query, cache, cache)
    values = decoded(rows)
    assert not values[:2].any()
    assert np.isnan(values[2]).all()
    assert (values[3].astype(np.float32) == 1).all()


def test_heads_that_do_not_share_equally_are_refused(host):
    query, keys, values = draw((3, 2, 1, 4, 8))
    assert attend(host, query, keys, values) is None
