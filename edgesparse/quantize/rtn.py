"""Round to nearest, with the scale of each group searched for the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.packed import Codes
from edgesparse.quantize.grid import Grid, to_codes


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Nearest code; needs no inputs."""

    needs: ClassVar[frozenset[Statistic]] = frozenset()

    def quantize(
        self, weight: Tensor, statistics: Statistics, grid: Grid, keep_mask: Tensor | None
    ) -> Codes:
        """Quantize ``weight``, float32 [N, K]; ``statistics`` are not looked at."""
        if keep_mask is not None:
            weight = weight * keep_mask
        scales = grid.search(weight)
        values = grid.codes(weight, grid.by_column(scales, weight.shape[1]))
        return to_codes(values, scales, keep_mask, grid)


RTN = Nearest()
