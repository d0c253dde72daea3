"""Pruners: which weights stay, and the values of those that do.

A pruner is a frozen dataclass of options with ``needs`` and ``prune``; one row here, or one
``PRUNERS.register(name, config)``, makes it a ``method`` of every recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.packed import Codes
from edgesparse.pattern import Pattern
from edgesparse.quantize.grid import Grid
from edgesparse.registry import Registry


@dataclass(frozen=True)
class Pruned:
    """A pruned weight.

    Attributes:
        weight: float32 [N, K], zero where removed.
        keep_mask: bool [N, K], True = kept.
    """

    weight: Tensor
    keep_mask: Tensor


class Pruner(Protocol):
    """One way to prune.

    Attributes:
        needs: Statistics of the inputs it uses.
        updates: Whether it changes the weights it keeps.
    """

    @property
    def needs(self) -> frozenset[Statistic]:
        """Statistics of the inputs it uses."""

    @property
    def updates(self) -> bool:
        """Whether it changes the weights it keeps."""

    def prune(self, weight: Tensor, statistics: Statistics, pattern: Pattern) -> Pruned:
        """Prune ``weight``, float32 [N, K]; neither argument is changed."""


@runtime_checkable
class JointPruner(Protocol):
    """A pruner that can round the weights it keeps to codes in the same pass."""

    def prune_to_codes(
        self, weight: Tensor, statistics: Statistics, pattern: Pattern, grid: Grid
    ) -> Codes:
        """Prune and quantize ``weight``, float32 [N, K]; return codes of shape [N, K]."""


PRUNERS: Registry[Pruner] = Registry(
    "pruner",
    {
        "magnitude": "edgesparse.prune.magnitude:MAGNITUDE",
        "wanda": "edgesparse.prune.wanda:WANDA",
        "sparsegpt": "edgesparse.prune.sparsegpt:SPARSEGPT",
        "sparsegpt-fast": "edgesparse.prune.sparsegpt:OWN_OUTPUTS",
        "admm": "edgesparse.prune.admm:BEST",
    },
)
