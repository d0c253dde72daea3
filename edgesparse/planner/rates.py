"""The loss of a model per unit of error in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgesparse.packed import FormatSpec
from edgesparse.pattern import Pattern
from edgesparse.planner.error_model import gaussian_error

Numbers = tuple[int, int, Pattern, str, int]
"""Which numbers a format can hold: bits, group size, pattern, scheme, rows of a table."""


def numbers_of(spec: FormatSpec) -> Numbers:
    """Return which numbers ``spec`` can hold, however they are laid out."""
    return spec.bits, spec.group_size, spec.pattern, spec.scheme, spec.table_rows


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Loss of the model per relative squared error of one tensor.

    Attributes:
        rounding: Of errors made by rounding the weights that stay, as a Gaussian matrix has them.
        pruning: Of errors made by removing weights, likewise.
        output: Of errors of its outputs.
        errors: Relative squared error of its outputs as it was measured, by ``Numbers``.
    """

    rounding: float
    pruning: float
    output: float = 0.0
    errors: Mapping[Numbers, float] = field(default_factory=dict)

    def loss(self, spec: FormatSpec | None) -> float:
        """Return the predicted loss of storing the tensor as ``spec``; None stores it exactly."""
        if spec is None:
            return 0.0
        measured = self.errors.get(numbers_of(spec))
        if measured is not None:
            return self.output * measured
        total = gaussian_error(spec.bits, spec.group_size, spec.pattern, spec.scheme)
        removed = 0.0 if spec.pattern.is_dense else gaussian_error(16, 0, spec.pattern)
        return self.pruning * removed + self.rounding * max(0.0, total - removed)


Sensitivity = Mapping[str, Rates]
"""Rates by tensor name; a tensor not in it counts by its number of weights."""


def alike(numel: int) -> Rates:
    """Return the rates of a tensor nobody measured: every weight of a model counts the same."""
    return Rates(rounding=float(numel), pruning=float(numel))
