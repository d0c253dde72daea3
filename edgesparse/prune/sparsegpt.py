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
from edgesparse.prune.obs import Swept, sweep
from edgesparse.quantize.grid import Grid


@dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """Options of the sweep.

    Attributes:
        damping: Added to the Hessian's diagonal, relative to its mean.
        makes_up: Aim at the outputs of the uncompressed model, to make up for what the layers
            before lost. False aims at this layer's own outputs on the inputs it now has, as the
            paper does: half the time, as one model is run instead of two, and a worse model (26 M
            language model, 50 %: 1.216 × the dense perplexity instead of 1.118).
    """

    damping: float = 0.01
    makes_up: bool = True
    updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise RecipeError(f"damping is {self.damping}, expected more than 0")

    @property
    def needs(self) -> frozenset[Statistic]:
        """Statistics of the inputs it uses."""
        dense = {Statistic.DENSE_TARGET} if self.makes_up else set()
        return frozenset({Statistic.HESSIAN, *dense})

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
        factor = statistics.factor(self.damping, weight.device)
        steps = grid.search(weight) if grid is not None and grid.is_shared else None
        return sweep(weight, factor, pattern=pattern, grid=grid, steps=steps)


SPARSEGPT = SparseGPT()
OWN_OUTPUTS = SparseGPT(makes_up=False)
