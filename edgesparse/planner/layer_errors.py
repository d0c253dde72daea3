"""The measured error of every layer for every candidate, each solved by its own method.

What a candidate does to a layer is seen on the dense model's own inputs: the relative output
error ``|X(W' - W)ᵀ|² / |XWᵀ|²`` after pruning and rounding as its rule says. One pass over the
calibration gathers the statistics for all candidates; with a cache a candidate is solved once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from edgesparse.calibrate import Statistic, Statistics, calibration_batches
from edgesparse.calibrate.visit import visit
from edgesparse.model import CapturedModel, TensorInfo
from edgesparse.packed import SYMMETRIC
from edgesparse.planner.candidates import plan_tensor
from edgesparse.planner.measured import Measured
from edgesparse.prune import PRUNERS
from edgesparse.quantize import QUANTIZERS
from edgesparse.recipe import Rule
from edgesparse.solve import needs_of, solve_tensor

LayerErrors = Mapping[str, Mapping[Rule, float]]
"""Tensor name → candidate → relative output error; 0 where the tensor would stay as it is."""


def measure_layer_errors(
    captured: CapturedModel,
    candidates: Sequence[Rule],
    calibration: object,
    *,
    windows: int | None = 16,
    window: int = 512,
    device: str = "cpu",
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[Rule, float]]:
    """Return the error of every compressible tensor for every candidate that matches it.

    Args:
        captured: The model; not changed.
        candidates: Pattern, sparsity, bits, group size and methods to try.
        calibration: See ``calibrate.calibration_batches``.
        windows: Windows of tokens.
        window: Tokens in a window.
        device: Where blocks run and solvers compute.
        seed: Which windows.
        cache: Directory where measured errors are kept; None keeps none.
        progress: Called with (tensors done, tensors in all).

    Raises:
        CalibrationError: Unusable calibration data, activations that are not finite.
    """
    batches = calibration_batches(captured, calibration, windows=windows, window=window, seed=seed)
    tensors = {t.name: t for t in captured.tensors if t.compressible}
    matching = {n: [r for r in candidates if r.matches(t)] for n, t in tensors.items()}
    errors: dict[str, dict[Rule, float]] = {name: {} for name in tensors}
    with Measured.of(cache, captured, batches) as measured:

        def see(tensor: TensorInfo, weight: Tensor, statistics: Statistics) -> None:
            for rule in matching[tensor.name]:
                measure = partial(_error, tensor, weight, statistics, rule)
                error = measured.loss(tensor.name, describe(rule), measure)
                errors[tensor.name][rule] = error
            if progress is not None:
                progress(sum(map(bool, errors.values())), sum(map(bool, matching.values())))

        unknown = {
            name: _needs(tensors[name], rules)
            for name, rules in matching.items()
            if rules and not measured.knows(name, map(describe, rules))
        }
        for name in tensors.keys() - unknown.keys():
            empty = Statistics(columns=tensors[name].matrix_shape[1])
            see(tensors[name], torch.empty(0), empty)
        if unknown:
            visit(captured, unknown, batches, see, device=torch.device(device))
    return errors


def describe(rule: Rule) -> str:
    """Return what a candidate does in words: what its error is kept under.

    The options of its methods are part of it, so that no error outlives a change of them.
    """
    pruner = "" if rule.pattern.is_dense else f", {PRUNERS.get(rule.method)!r}"
    quantizer = "" if rule.bits == 16 else f", {QUANTIZERS.get(rule.quantizer)!r}"
    scheme = "" if rule.scheme == SYMMETRIC else f" {rule.scheme} {rule.table_rows}"
    return (
        f"{rule.pattern} {rule.pattern.sparsity:g}, {rule.bits}-bit{scheme} g{rule.group_size}"
        f"{pruner}{quantizer}"
    )


def _needs(tensor: TensorInfo, rules: Sequence[Rule]) -> frozenset[Statistic]:
    """Return what the candidates ask for; nothing before a layer is compressed here."""
    needs = {Statistic.HESSIAN}
    for rule in rules:
        entry = plan_tensor(tensor, rule)
        if entry.spec is not None:
            needs |= needs_of(rule, entry.spec)
    return frozenset(needs - {Statistic.DENSE_TARGET})


def _error(tensor: TensorInfo, weight: Tensor, statistics: Statistics, rule: Rule) -> float:
    entry = plan_tensor(tensor, rule)
    if entry.spec is None:
        return 0.0
    codes = solve_tensor(tensor.name, weight, statistics, rule, entry.spec)
    decoded = torch.from_numpy(codes.decode()).to(weight.device)
    return statistics.output_error(weight, decoded)
