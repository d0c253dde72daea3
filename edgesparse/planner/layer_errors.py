"""The measured error of every layer for every candidate, each solved by its own method.

What a candidate does to a layer is seen on the dense model's own inputs: the relative output
error ``|X(W' - W)ᵀ|² / |XWᵀ|²`` after pruning and rounding as its rule says. One pass over the
calibration gathers the statistics for all candidates; with a cache a candidate is solved once.

``measured_rates`` makes of them what the planner weighs: loss = rate × error of the outputs, the
rate from the two damages whose loss ``sensitivity`` measured and whose errors are measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from edgesparse.calibrate import Statistic, Statistics, calibration_batches
from edgesparse.calibrate.visit import visit
from edgesparse.calibrate.windows import Batch
from edgesparse.model import CapturedModel, TensorInfo
from edgesparse.packed import SYMMETRIC
from edgesparse.pattern import Pattern
from edgesparse.planner.candidates import plan_tensor, possible
from edgesparse.planner.choose import readable_by
from edgesparse.planner.error_model import gaussian_error
from edgesparse.planner.measured import Measured
from edgesparse.planner.rates import Numbers, Rates, Sensitivity, numbers_of
from edgesparse.planner.sensitivity import (
    BITS,
    GROUP_SIZE,
    REMOVED,
    ROUNDED,
    SPARSITY,
    round_off,
    take_away,
)
from edgesparse.prune import PRUNERS
from edgesparse.quantize import QUANTIZERS
from edgesparse.recipe import Recipe, Rule
from edgesparse.solve import needs_of, solve_tensor


@dataclass(frozen=True)
class _Damage:
    """One of the two damages whose loss ``measure_sensitivity`` measures."""

    words: str
    done_to: Callable[[Tensor], Tensor]


_DAMAGES = (_Damage(ROUNDED, round_off), _Damage(REMOVED, take_away))


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How the model is run to measure the errors of its layers.

    Attributes:
        windows: Windows of tokens; None takes as many as there are, at most 256.
        window: Tokens in a window.
        device: Where blocks run and solvers compute.
        seed: Which windows.
        cache: Directory where measured errors are kept; None keeps none.
        progress: Called with (tensors done, tensors in all).
    """

    windows: int | None = 16
    window: int = 512
    device: str = "cpu"
    seed: int = 0
    cache: Path | None = None
    progress: Callable[[int, int], None] | None = None

    def batches(self, captured: CapturedModel, calibration: object) -> list[Batch]:
        """Return the batches of the calibration data."""
        return calibration_batches(
            captured, calibration, windows=self.windows, window=self.window, seed=self.seed
        )


LayerErrors = Mapping[str, Mapping[Rule, float]]
"""Tensor name → candidate → relative output error; 0 where the tensor would stay as it is."""


def measure_layer_errors(
    captured: CapturedModel,
    candidates: Sequence[Rule],
    calibration: object,
    passes: Passes = Passes(),
) -> dict[str, dict[Rule, float]]:
    """Return the error of every compressible tensor for every candidate that matches it.

    Args:
        captured: The model; not changed.
        candidates: Pattern, sparsity, bits, group size and methods to try.
        calibration: See ``calibrate.calibration_batches``.
        passes: How it is run.

    Raises:
        CalibrationError: Unusable calibration data, activations that are not finite.
    """
    batches = passes.batches(captured, calibration)
    tensors = {t.name: t for t in captured.tensors if t.compressible}
    matching = {n: [r for r in candidates if r.matches(t)] for n, t in tensors.items()}
    with Measured.of(passes.cache, captured, batches) as measured:
        found = _errors(captured, matching, batches, measured, passes)
    return {n: {r: e for r, e in of.items() if isinstance(r, Rule)} for n, of in found.items()}


def measured_rates(
    captured: CapturedModel,
    recipe: Recipe,
    sensitivity: Sensitivity,
    calibration: object,
    passes: Passes = Passes(),
    *,
    target: str | None = None,
) -> dict[str, Rates]:
    """Return rates with the measured error of everything that ``recipe`` leaves open.

    Every candidate of every tensor is solved, about sixty where nothing is fixed: as long as
    compressing the model so many times, once for a model and its calibration with a ``cache``.

    Args:
        captured: The model; not changed.
        recipe: What the planner may choose from.
        sensitivity: From ``measure_sensitivity``.
        calibration: See ``calibrate.calibration_batches``.
        passes: How it is run.
        target: Exporter that reads the formats.

    Raises:
        CalibrationError: Unusable calibration data, activations that are not finite.
    """
    batches = passes.batches(captured, calibration)
    formats, entries = readable_by(target), {}
    for tensor in captured.tensors:
        if tensor.compressible and tensor.name in sensitivity:
            found = [e for e in possible(tensor, recipe.rule_for(tensor), formats) if e.spec]
            entries[tensor.name] = {e.rule: e for e in found if e.rule is not None}
    wanted: dict[str, list[Rule | _Damage]] = {
        name: [*_DAMAGES, *of] for name, of in entries.items() if of
    }
    with Measured.of(passes.cache, captured, batches) as measured:
        errors = _errors(captured, wanted, batches, measured, passes)
    rates = dict(sensitivity)
    for name in wanted:
        error = {
            numbers_of(e.spec): errors[name][rule]
            for rule, e in entries[name].items()
            if e.spec is not None
        }
        rates[name] = _with_errors(sensitivity[name], [errors[name][d] for d in _DAMAGES], error)
    return rates


def _with_errors(rates: Rates, damages: Sequence[float], errors: Mapping[Numbers, float]) -> Rates:
    """Return rates whose loss per error of the outputs explains both damages best."""
    rounded = rates.rounding * gaussian_error(BITS, GROUP_SIZE, Pattern())
    removed = rates.pruning * gaussian_error(16, 0, Pattern(sparsity=SPARSITY))
    total = sum(damages)
    if not total > 0:  # its outputs are all zero, whatever is done to it
        return replace(rates, output=0.0, errors=errors)
    return replace(rates, output=(rounded + removed) / total, errors=errors)


def _errors(
    captured: CapturedModel,
    matching: Mapping[str, Sequence[Rule | _Damage]],
    batches: Sequence[Batch],
    measured: Measured,
    passes: Passes,
) -> dict[str, dict[Rule | _Damage, float]]:
    """Return the error of every tensor for everything in ``matching``."""
    tensors = {t.name: t for t in captured.tensors if t.name in matching}
    errors: dict[str, dict[Rule | _Damage, float]] = {name: {} for name in tensors}

    def see(tensor: TensorInfo, weight: Tensor, statistics: Statistics) -> None:
        for case in matching[tensor.name]:
            measure = partial(_error, tensor, weight, statistics, case)
            errors[tensor.name][case] = measured.loss(tensor.name, describe(case), measure)
        if passes.progress is not None:
            passes.progress(sum(map(bool, errors.values())), sum(map(bool, matching.values())))

    unknown = {
        name: _needs(tensors[name], cases)
        for name, cases in matching.items()
        if cases and not measured.knows(name, map(describe, cases))
    }
    for name in tensors.keys() - unknown.keys():
        empty = Statistics(columns=tensors[name].matrix_shape[1])
        see(tensors[name], torch.empty(0), empty)
    if unknown:
        visit(captured, unknown, batches, see, device=torch.device(passes.device))
    return errors


def describe(rule: Rule | _Damage) -> str:
    """Return what a candidate does in words: what its error is kept under.

    The options of its methods are part of it, so that no error outlives a change of them.
    """
    if isinstance(rule, _Damage):
        return f"output error, {rule.words}"
    pruner = "" if rule.pattern.is_dense else f", {PRUNERS.get(rule.method)!r}"
    quantizer = "" if rule.bits == 16 else f", {QUANTIZERS.get(rule.quantizer)!r}"
    scheme = "" if rule.scheme == SYMMETRIC else f" {rule.scheme} {rule.table_rows}"
    group = "tensor" if rule.one_scale else rule.group_size
    return (
        f"{rule.pattern} {rule.pattern.sparsity:g}, {rule.bits}-bit{scheme} g{group}"
        f"{pruner}{quantizer}"
    )


def _needs(tensor: TensorInfo, rules: Sequence[Rule | _Damage]) -> frozenset[Statistic]:
    """Return what the candidates ask for; nothing before a layer is compressed here."""
    needs = {Statistic.HESSIAN}
    for rule in rules:
        entry = plan_tensor(tensor, rule) if isinstance(rule, Rule) else None
        if isinstance(rule, Rule) and entry is not None and entry.spec is not None:
            needs |= needs_of(rule, entry.spec)
    return frozenset(needs - {Statistic.DENSE_TARGET})


def _error(
    tensor: TensorInfo, weight: Tensor, statistics: Statistics, rule: Rule | _Damage
) -> float:
    if isinstance(rule, _Damage):
        return statistics.output_error(weight, rule.done_to(weight))
    entry = plan_tensor(tensor, rule)
    if entry.spec is None:
        return 0.0
    codes = solve_tensor(tensor.name, weight, statistics, rule, entry.spec)
    decoded = torch.from_numpy(codes.decode()).to(weight.device)
    return statistics.output_error(weight, decoded)
