"""The plan as a value."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgesparse.budget import Budget
from edgesparse.model import TensorInfo
from edgesparse.packed import FormatSpec
from edgesparse.recipe import Rule


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        tensor: The tensor.
        rule: What is done, with the planner's changes; None leaves the tensor as it is.
        spec: How it will be stored; None leaves it as it is.
        nbytes: Predicted stored bytes.
        reason: Why this, in a few words.
    """

    tensor: TensorInfo
    rule: Rule | None
    spec: FormatSpec | None
    nbytes: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to every tensor of a model, and what that costs.

    Attributes:
        tensors: One entry per distinct tensor, in state-dict order.
        nbytes: Predicted bytes of ``weights.safetensors``, header included.
        budget: What was asked for.
        target: Exporter the budget is for, or None for the packed model itself.
        artifact_nbytes: Predicted bytes of the target's file; None without a target.
        peak_nbytes: Predicted peak memory in the target's runtime; None if not predicted.
        notes: What the planner changed or wants said.
        dense_alternative: The plan of the same bytes with fewer bits and no sparsity; None when
            this plan has no sparsity.
    """

    tensors: tuple[TensorPlan, ...]
    nbytes: int
    budget: Budget
    target: str | None = None
    artifact_nbytes: int | None = None
    peak_nbytes: int | None = None
    notes: tuple[str, ...] = ()
    dense_alternative: Plan | None = field(default=None, repr=False)
