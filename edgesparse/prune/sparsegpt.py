"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): prune and repair in one sweep.

The mask of each block of about 128 columns is chosen when the sweep reaches it, from the cost of
removing each weight as it then is; the rest of the row takes up the error. With a grid the kept
weights are rounded in the same sweep, so that later columns repair both errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.errors import RecipeError
from edgesparse.packed import Codes
from edgesparse.pattern import Pattern
from edgesparse.prune import Pruned
from edgesparse.prune.obs import Swept, factorize, sweep
from edgesparse.quantize.grid import Grid


@dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """Options of the sweep.

    Attributes:
        damping: Added to the Hessian's diagonal, relative to its mean.
    """

    damping: float = 0.01
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN, Statistic.DENSE_TARGET})
    updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise RecipeError(f"damping is {self.damping}, expected more than 0")

    def prune(self, weight: Tensor, statistics: Statistics, pattern: Pattern) -> Pruned:
        """Prune ``weight``, float32 [N, K]."""
        swept = self._sweep(weight, statistics, pattern, None)
        return Pruned(swept.weight, swept.keep_mask)

    def prune_to_codes(
        self, weight: Tensor, statistics: Statistics, pattern: Pattern, grid: Grid
    ) -> Codes:
        """Prune and round ``weight``, float32 [N, K], in one sweep."""
        swept = self._sweep(weight, statistics, pattern, grid)
        assert swept.steps is not None
        return grid.as_codes(swept.weight, swept.steps, swept.keep_mask)

    def _sweep(
        self, weight: Tensor, statistics: Statistics, pattern: Pattern, grid: Grid | None
    ) -> Swept:
        factor = factorize(statistics.second_moment(weight.device), self.damping)
        return sweep(weight, factor, pattern=pattern, grid=grid)


SPARSEGPT = SparseGPT()
