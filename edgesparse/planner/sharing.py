"""How much each layer loses: the plan's sparsity shared out anew, the weights kept in all the same.

An allocation looks at the model and its calibration and says how sparse each layer should be. What
the plan keeps in all decides; N:M patterns fix their sparsity and take no part. One row here, or
``ALLOCATIONS.register``, makes an allocation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from edgesparse.calibrate import calibration_batches
from edgesparse.calibrate.windows import Batch
from edgesparse.errors import BudgetExceeded
from edgesparse.model import CapturedModel
from edgesparse.packed import FORMATS
from edgesparse.planner.predict import artifact_prediction, weights_nbytes
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.registry import Registry

UNIFORM = "uniform"
"""The allocation that leaves every layer as it is planned."""

MOST = 0.95
"""No layer loses more than this by being shared out."""


class Allocation(Protocol):
    """One way to share sparsity out."""

    def sparsities(
        self,
        captured: CapturedModel,
        layers: Sequence[TensorPlan],
        batches: Sequence[Batch],
        device: torch.device,
    ) -> Mapping[str, float]:
        """Return the wanted sparsity of each layer by name; only differences matter.

        Args:
            captured: The model.
            layers: Plans of the tensors that take part, each with a rule that prunes.
            batches: Calibration inputs.
            device: Where to compute.
        """


ALLOCATIONS: Registry[Allocation] = Registry(
    "allocation",
    {
        "owl": "edgesparse.planner.owl:OUTLIERS",
        "hessian": "edgesparse.planner.curvature:TRACE",
    },
)


def share_sparsity(
    captured: CapturedModel,
    plan: Plan,
    calibration: object,
    allocation: str,
    *,
    windows: int | None = 16,
    window: int = 512,
    device: str = "cpu",
    seed: int = 0,
) -> Plan:
    """Return the plan with the same number of weights removed, shared out by ``allocation``.

    Args:
        captured: The model; not changed.
        plan: What was to be done.
        calibration: See ``calibrate.calibration_batches``.
        allocation: ``uniform`` (the plan as it is) or a row of ``ALLOCATIONS``.
        windows: Windows of tokens to look at.
        window: Tokens in a window.
        device: Where to compute.
        seed: Which windows, and whatever else is random.

    Raises:
        UnknownName: No such allocation.
        CalibrationError: Unusable calibration data.
        BudgetExceeded: The plan's budget leaves no room for other masks.
    """
    if allocation == UNIFORM:
        return plan
    method = ALLOCATIONS.get(allocation)
    layers = [entry for entry in plan.tensors if _takes_part(entry)]
    if len(layers) < 2:
        return _noted(plan, f"allocation {allocation}: fewer than two layers can share sparsity")
    batches = calibration_batches(
        captured, calibration, windows=windows, window=window, seed=seed, batch_size=2
    )
    wanted = method.sparsities(captured, layers, batches, torch.device(device))
    return _noted(_within_budget(plan, layers, wanted), f"sparsity shared out by {allocation}")


def same_total(
    wanted: Mapping[str, float], sizes: Mapping[str, int], removed: float
) -> dict[str, float]:
    """Return the sparsities moved by one common amount so that ``removed`` weights go in all.

    Args:
        wanted: Sparsities by layer.
        sizes: Weights by layer.
        removed: Weights to remove; no layer loses more than ``MOST`` of its own.
    """
    low, high = -1.0, 1.0
    for _ in range(60):
        shift = (low + high) / 2
        found = {name: min(MOST, max(0.0, s + shift)) for name, s in wanted.items()}
        if sum(sizes[name] * s for name, s in found.items()) < removed:
            low = shift
        else:
            high = shift
    return found


def _takes_part(entry: TensorPlan) -> bool:
    pattern = None if entry.rule is None else entry.rule.pattern
    return pattern is not None and not pattern.is_dense and pattern.n_of_m is None


def _within_budget(plan: Plan, layers: Sequence[TensorPlan], wanted: Mapping[str, float]) -> Plan:
    """Return the plan with other sparsities, a little sparser where its file would be too large."""
    sizes = {entry.tensor.name: entry.tensor.numel for entry in layers}
    planned = sum(e.tensor.numel * e.rule.pattern.sparsity for e in layers if e.rule is not None)
    for extra in range(11):
        removed = planned + extra * 1e-3 * sum(sizes.values())
        shared = _with_sparsities(plan, same_total(wanted, sizes, removed))
        if plan.budget.file is None or shared.file_nbytes <= max(
            plan.budget.file, plan.file_nbytes
        ):
            return shared
    raise BudgetExceeded(
        f"sharing the sparsity out makes a file of {shared.file_nbytes} bytes, budget "
        f"{plan.budget}; use --allocation uniform"
    )


def _with_sparsities(plan: Plan, sparsities: Mapping[str, float]) -> Plan:
    entries = tuple(
        _with_sparsity(entry, sparsities[entry.tensor.name])
        if entry.tensor.name in sparsities
        else entry
        for entry in plan.tensors
    )
    artifact = None if plan.target is None else artifact_prediction(plan.target)(entries)
    return dataclasses.replace(
        plan, tensors=entries, nbytes=weights_nbytes(entries), artifact_nbytes=artifact
    )


def _with_sparsity(entry: TensorPlan, sparsity: float) -> TensorPlan:
    assert entry.rule is not None
    assert entry.spec is not None
    pattern = entry.rule.pattern.with_sparsity(round(sparsity, 6))
    spec = dataclasses.replace(entry.spec, pattern=pattern)
    nbytes = FORMATS.get(spec.name).predict_nbytes(spec, entry.tensor.shape)
    return dataclasses.replace(
        entry,
        rule=dataclasses.replace(entry.rule, pattern=pattern),
        spec=spec,
        nbytes=sum(nbytes.values()),
    )


def _noted(plan: Plan, note: str) -> Plan:
    return dataclasses.replace(plan, notes=(*plan.notes, note))
