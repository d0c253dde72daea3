"""How long the products of one token take on this machine, measured format by format.

A token of a language model is multiplied with every matrix once. The time of that depends on the
format and the pattern, and is measured on a matrix of random weights, over so many copies of it
that they come from memory rather than from the cache, one thread. Attention and what runs between
the products come on top and are not predicted.

It depends on who multiplies, too. A target whose runtime is here is asked (``exporters.Paced``);
for all others, and without a target, the kernels of this package are timed, and a plan says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.held import for_products

from edgesparse.calibrate import Statistics
from edgesparse.codes import Codes, table_count
from edgesparse.errors import UsageError
from edgesparse.exporters import EXPORTERS, Paced, installed
from edgesparse.formats.operand import open_matrix
from edgesparse.model import CapturedModel, TensorInfo, TensorKind
from edgesparse.packed import FORMATS, FormatSpec, PackedTensor
from edgesparse.planner.types import TensorPlan
from edgesparse.recipe import Rule
from edgesparse.solve import solve_tensor

OWN = "edgesparse"
"""Whose products are counted where no target's are: those of this package's kernels."""

STREAMED_NBYTES = 1 << 26
"""Bytes of weights read in turn, so that none of them is still in a cache."""

ROWS, COLUMNS = 4096, 1024
"""Of the matrix that is timed: so many weights that what a call from Python costs is little beside
their product."""

_SOLVED_ROWS = 512  # and repeated: kernels read all rows alike
_REPEATS = 3


def timed_with(target: str | None) -> str:
    """Return whose products a plan for ``target`` counts: the target's name, or ``edgesparse``.

    Raises:
        UnknownName: No such target.
    """
    return target if target is not None and _paced(target) is not None else OWN


def products_ns(
    captured: CapturedModel, entries: Sequence[TensorPlan], target: str | None
) -> list[int]:
    """Return the nanoseconds one token spends with each tensor; 0 where nothing is multiplied.

    Of the experts of a mixture a token meets only some.

    Args:
        captured: The model.
        entries: What is done with its tensors, in any order and number.
        target: Whose runtime multiplies, see ``timed_with``.

    Raises:
        UsageError: The model is no language model.
        MissingDependency: The target's tools are not installed.
        MissingTool: The target's runtime needs something that cannot be built here.
    """
    if captured.task != "causal-lm":
        raise UsageError(
            f"{captured.name} is no language model, and the time of other models is not predicted; "
            "leave latency out of the budget"
        )
    multiplied = [entry for entry in entries if _is_multiplied(entry.tensor)]
    row = None if target is None else _paced(target)
    if target is None or row is None:
        rates: Sequence[float] = [_own_rate(entry) for entry in multiplied]
    else:
        installed(target)  # else the error would come from the middle of an import
        rates = row.product_rates(multiplied)
    found = iter(rates)
    share = _routed_share(captured)
    return [
        _matrix_ns(entry.tensor, next(found), share) if _is_multiplied(entry.tensor) else 0
        for entry in entries
    ]


def _paced(target: str) -> Paced | None:
    row = EXPORTERS.get(target)
    return row if isinstance(row, Paced) else None


def _is_multiplied(tensor: TensorInfo) -> bool:
    tied = tensor.kind is TensorKind.EMBEDDING and bool(tensor.aliases)
    return tied or tensor.kind in (TensorKind.LINEAR, TensorKind.EXPERT)


def _matrix_ns(tensor: TensorInfo, rate: float, share: float) -> int:
    return round(rate * (share if tensor.kind is TensorKind.EXPERT else 1.0) * tensor.numel)


def _own_rate(entry: TensorPlan) -> float:
    return _float_rate() if entry.rule is None else _packed_rate(*_key(entry))


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
