"""The loss of a model per unit of error in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgesparse.packed import FormatSpec
from edgesparse.planner.error_model import gaussian_error


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Loss of the model per relative squared error of one tensor.

    Attributes:
        rounding: Of errors made by rounding the weights that stay.
        pruning: Of errors made by removing weights.
    """

    rounding: float
    pruning: float

    def loss(self, spec: FormatSpec | None) -> float:
        """Return the predicted loss of storing the tensor as ``spec``; None stores it exactly."""
        if spec is None:
            return 0.0
        total = gaussian_error(spec.bits, spec.group_size, spec.pattern, spec.scheme)
        removed = 0.0 if spec.pattern.is_dense else gaussian_error(16, 0, spec.pattern)
        return self.pruning * removed + self.rounding * max(0.0, total - removed)


Sensitivity = Mapping[str, Rates]
"""Rates by tensor name; a tensor not in it counts by its number of weights."""


def alike(numel: int) -> Rates:
    """Return the rates of a tensor nobody measured: every weight of a model counts the same."""
    return Rates(rounding=float(numel), pruning=float(numel))
