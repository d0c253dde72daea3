"""Magnitude pruning: the smallest weights of a layer go. Needs no inputs; the floor to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.pattern import Pattern
from edgesparse.prune import Pruned
from edgesparse.prune.masks import keep_highest


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Score ``w²``; weights of a layer compete with each other."""

    needs: ClassVar[frozenset[Statistic]] = frozenset()
    updates: ClassVar[bool] = False

    def prune(self, weight: Tensor, statistics: Statistics, pattern: Pattern) -> Pruned:
        """Prune ``weight``; ``statistics`` are not looked at."""
        keep_mask = keep_highest(weight.square(), pattern)
        return Pruned(weight * keep_mask, keep_mask)


MAGNITUDE = Magnitude()
