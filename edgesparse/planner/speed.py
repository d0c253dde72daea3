"""How long this package's kernels take for a weight on this machine, measured format by format.

A token of a language model is multiplied with every matrix once. The time of that depends on the
format and the pattern, and is measured on a matrix of random weights, over so many copies of it
that they come from memory rather than from the cache, one thread. Attention and what runs between
the products come on top and are not predicted.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.held import for_products

from edgesparse.calibrate import Statistics
from edgesparse.codes import Codes, table_count
from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, FormatSpec, PackedTensor
from edgesparse.planner.types import TensorPlan
from edgesparse.recipe import Rule
from edgesparse.solve import solve_tensor

STREAMED_NBYTES = 1 << 26
"""Bytes of weights read in turn, so that none of them is still in a cache."""

ROWS, COLUMNS = 4096, 1024
"""Of the matrix that is timed: so many weights that what a call from Python costs is little beside
their product."""

_SOLVED_ROWS = 512  # and repeated: kernels read all rows alike
_REPEATS = 3


def own_rate(entry: TensorPlan) -> float:
    """Return nanoseconds a weight of one matrix, packed or as it is."""
    return _float_rate() if entry.rule is None else _packed_rate(*_key(entry))


def _key(entry: TensorPlan) -> tuple[FormatSpec, Rule]:
    """Return what the time of a product depends on; scales are few, their number hardly counts."""
    assert entry.rule is not None
    assert entry.spec is not None
    group_size = 128 if entry.spec.group_size else 0
    rule = Rule(
        bits=entry.rule.bits, group_size=group_size or 128, pattern=entry.rule.pattern,
        scheme=entry.rule.scheme, method="magnitude", quantizer="rtn",
    )  # fmt: skip
    return replace(entry.spec, group_size=group_size), rule


@lru_cache(maxsize=256)
def _packed_rate(spec: FormatSpec, rule: Rule) -> float:
    """Return nanoseconds a weight."""
    packed = random_weight(spec, rule)
    count = max(2, STREAMED_NBYTES // packed.nbytes)
    copies = [_copy(packed) for _ in range(count)]
    weights = count * ROWS * COLUMNS
    matrices = [for_products(open_matrix(copy), weights=weights) for copy in copies]
    x, out = np.ones((1, COLUMNS), np.float32), np.empty((1, ROWS), np.float32)
    kernels.matmul(x, matrices[0], out=out)  # compiles
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        for matrix in matrices:
            kernels.matmul(x, matrix, out=out)
        times.append(time.perf_counter_ns() - began)
    return min(times) / weights


def random_weight(spec: FormatSpec, rule: Rule) -> PackedTensor:
    """Return a weight [ROWS, COLUMNS] of Gaussian numbers in a format, for timing products."""
    gaussian = np.random.default_rng(0).standard_normal((_SOLVED_ROWS, COLUMNS), np.float32)
    weight, statistics = torch.from_numpy(gaussian), Statistics(columns=COLUMNS)
    codes = solve_tensor("speed", weight, statistics, rule, spec)
    return FORMATS.get(spec.name).pack(_repeated(codes), pattern=rule.pattern)


def _repeated(codes: Codes) -> Codes:
    rows = np.arange(ROWS) % len(codes.values)
    zeros, table = codes.zeros, codes.table
    if table is not None:
        table = table[np.arange(table_count(ROWS, codes.table_rows)) % len(table)]
    return replace(
        codes, values=codes.values[rows], scales=codes.scales[rows],
        keep_mask=codes.keep_mask[rows], zeros=None if zeros is None else zeros[rows], table=table,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _float_rate() -> float:
    """Return nanoseconds a weight left in float32."""
    weights = torch.randn(STREAMED_NBYTES // (4 * ROWS * COLUMNS), ROWS, COLUMNS)
    x = torch.ones(COLUMNS)
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        for weight in weights:
            torch.mv(weight, x)
        times.append(time.perf_counter_ns() - began)
    return min(times) / weights.numel()


def _copy(packed: PackedTensor) -> PackedTensor:
    buffers = {name: array.copy() for name, array in packed.buffers.items()}
    return PackedTensor(spec=packed.spec, shape=packed.shape, buffers=buffers)
