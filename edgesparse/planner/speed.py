"""How long the products of one token take on this machine, measured format by format.

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
from edgesparse.errors import UsageError
from edgesparse.formats.operand import open_matrix
from edgesparse.model import CapturedModel, TensorKind
from edgesparse.packed import FORMATS, FormatSpec, PackedTensor
from edgesparse.planner.types import TensorPlan
from edgesparse.recipe import Rule
from edgesparse.solve import solve_tensor

_ROWS, _COLUMNS = 512, 1024
_STREAMED_NBYTES = 1 << 26
_REPEATS = 3


def product_ns(captured: CapturedModel, entry: TensorPlan) -> int:
    """Return the nanoseconds one token spends with a tensor; 0 for what it is not multiplied with.

    Of the experts of a mixture a token meets only some.

    Raises:
        UsageError: The model is no language model.
    """
    if captured.task != "causal-lm":
        raise UsageError(
            f"{captured.name} is no language model, and the time of other models is not predicted; "
            "leave latency out of the budget"
        )
    tensor = entry.tensor
    multiplied = tensor.kind in (TensorKind.LINEAR, TensorKind.EXPERT) or (
        tensor.kind is TensorKind.EMBEDDING and tensor.aliases
    )
    if not multiplied:
        return 0
    share = _routed_share(captured) if tensor.kind is TensorKind.EXPERT else 1.0
    rate = _float_rate() if entry.rule is None else _packed_rate(*_key(entry))
    return round(rate * share * tensor.numel)


def _routed_share(captured: CapturedModel) -> float:
    """Return the part of the experts that a token is sent to."""
    used = captured.config.get("num_experts_per_tok")
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((n for name in names if isinstance(n := captured.config.get(name), int)), 0)
    return used / total if isinstance(used, int) and total else 1.0


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
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((_ROWS, _COLUMNS))).float()
    codes = solve_tensor("speed", weight, Statistics(columns=_COLUMNS), rule, spec)
    packed = FORMATS.get(spec.name).pack(codes, pattern=rule.pattern)
    count = max(2, _STREAMED_NBYTES // packed.nbytes)
    copies = [_copy(packed) for _ in range(count)]
    matrices = [for_products(open_matrix(copy)) for copy in copies]
    x, out = np.ones((1, _COLUMNS), np.float32), np.empty((1, _ROWS), np.float32)
    kernels.matmul(x, matrices[0], out=out)  # compiles
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        for matrix in matrices:
            kernels.matmul(x, matrix, out=out)
        times.append(time.perf_counter_ns() - began)
    return min(times) / (count * weight.numel())


@lru_cache(maxsize=1)
def _float_rate() -> float:
    """Return nanoseconds a weight left in float32."""
    weights = torch.randn(_STREAMED_NBYTES // (4 * _ROWS * _COLUMNS), _ROWS, _COLUMNS)
    x = torch.ones(_COLUMNS)
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
