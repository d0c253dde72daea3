"""Round to nearest, with each group's scale, or each table, found for the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.packed import SCHEMES, Codes
from edgesparse.quantize.grid import Grid
from edgesparse.quantize.table import TableGrid


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Nearest code; needs no inputs."""

    needs: ClassVar[frozenset[Statistic]] = frozenset()
    schemes: ClassVar[frozenset[str]] = frozenset(SCHEMES)

    def quantize(
        self, weight: Tensor, statistics: Statistics, grid: Grid, keep_mask: Tensor | None
    ) -> Codes:
        """Quantize ``weight``, float32 [N, K]; ``statistics`` are not looked at."""
        if keep_mask is not None:
            weight = weight * keep_mask
        if isinstance(grid, TableGrid):
            steps = grid.search_tables(weight, None, keep_mask)
        else:
            steps = grid.search(weight)
        return grid.as_codes(grid.round(weight, steps), steps, keep_mask)


RTN = Nearest()
