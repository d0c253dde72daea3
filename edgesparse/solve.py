"""One weight through the methods its rule names: prune, then quantize, or both in one pass.

A method that needs ``Statistic.DENSE_TARGET`` is given the weight that best makes up for what the
compressed layers before it changed (``Statistics.retargeted``) instead of the original.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.errors import CalibrationError
from edgesparse.packed import ASYMMETRIC, TABLE, Codes, FormatSpec
from edgesparse.prune import PRUNERS, JointPruner, Pruned, Pruner
from edgesparse.quantize import QUANTIZERS, Quantizer, require_scheme
from edgesparse.quantize.grid import Grid, to_float16
from edgesparse.quantize.shifted import ShiftedGrid
from edgesparse.quantize.table import TableGrid
from edgesparse.recipe import Rule

JOINT_QUANTIZER = "gptq"
"""A pruner that can round in its own sweep does so with this quantizer, which it then contains."""


def needs_of(rule: Rule, spec: FormatSpec) -> frozenset[Statistic]:
    """Return the statistics that solving a weight by ``rule`` takes."""
    methods = [method for method in _methods(rule, spec) if method is not None]
    return frozenset().union(*(method.needs for method in methods))


def solve_tensor(
    name: str, weight: Tensor, statistics: Statistics, rule: Rule, spec: FormatSpec
) -> Codes:
    """Return the codes of one weight, shape [N, K].

    Args:
        name: For messages.
        weight: float32 [N, K]; not changed.
        statistics: Of its inputs; empty ones count all columns alike.
        rule: Pattern and methods.
        spec: Bits, group size and scheme of the format.

    Raises:
        CalibrationError: The values found are not finite or exceed float16.
    """
    pruner, quantizer = _methods(rule, spec)
    target = statistics.retargeted(weight)
    if quantizer is None:
        pruned = _pruned(pruner, weight, target, statistics, rule)
        if not bool((pruned.weight.abs() <= torch.finfo(torch.float16).max).all()):
            raise CalibrationError(
                f"{name}: {rule.method} found values beyond float16; raise its damping, or use "
                "more calibration data"
            )
        return to_float16(pruned.weight, pruned.keep_mask)
    grid = grid_of(spec, weight.shape[1], is_shared=rule.one_scale)
    if pruner is None:
        return quantizer.quantize(target, statistics, grid, None)
    # A table is made for the weights that stay: it needs the mask first.
    joint = rule.quantizer == JOINT_QUANTIZER and spec.scheme != TABLE
    if joint and isinstance(pruner, JointPruner):
        return pruner.prune_to_codes(target, statistics, rule.pattern, grid)
    pruned = _pruned(pruner, weight, target, statistics, rule)
    wanted = pruned.weight if pruner.updates else target
    return quantizer.quantize(wanted, statistics, grid, pruned.keep_mask)


def grid_of(spec: FormatSpec, columns: int, *, is_shared: bool = False) -> Grid:
    """Return the numbers a weight of ``columns`` columns may have in the format of ``spec``.

    With ``is_shared`` all rows have the same scale, and the same zero.
    """
    if spec.scheme == TABLE:
        return TableGrid(bits=spec.bits, group_size=max(1, columns), table_rows=spec.table_rows)
    kind = ShiftedGrid if spec.scheme == ASYMMETRIC else Grid
    return kind(bits=spec.bits, group_size=spec.group_size, is_shared=is_shared)


def _methods(rule: Rule, spec: FormatSpec) -> tuple[Pruner | None, Quantizer | None]:
    """Return the pruner of a sparse rule and the quantizer of one with integer codes."""
    pruner = None if rule.pattern.is_dense else PRUNERS.get(rule.method)
    quantizer = QUANTIZERS.get(rule.quantizer) if spec.bits < 16 else None
    if quantizer is not None:
        require_scheme(rule.quantizer, spec.scheme)
    return pruner, quantizer


def _pruned(
    pruner: Pruner | None, weight: Tensor, target: Tensor, statistics: Statistics, rule: Rule
) -> Pruned:
    """Return the pruned weight: of the target if the method can change what it keeps."""
    if pruner is None:
        return Pruned(weight, torch.ones_like(weight, dtype=torch.bool))
    return pruner.prune(target if pruner.updates else weight, statistics, rule.pattern)
