"""Wanda (Sun et al. 2023, arXiv 2306.11695): score ``(|w| · |x|)²``, compared within a row.

``|x|`` is the norm of the input column the weight multiplies. The weights kept are unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.pattern import Pattern
from edgesparse.prune import Pruned
from edgesparse.prune.masks import keep_highest_by_row


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """Weights of one row compete; blocks compete within their rows."""

    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.INPUT_NORM})
    updates: ClassVar[bool] = False

    def prune(self, weight: Tensor, statistics: Statistics, pattern: Pattern) -> Pruned:
        """Prune ``weight``, float32 [N, K]."""
        norm = statistics.input_norm(weight.device)
        keep_mask = keep_highest_by_row((weight * norm).square(), pattern)
        return Pruned(weight * keep_mask, keep_mask)


WANDA = Wanda()
