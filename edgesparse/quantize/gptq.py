"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round column by column, repair in what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.errors import RecipeError
from edgesparse.packed import Codes
from edgesparse.prune.obs import factorize, sweep
from edgesparse.quantize.grid import Grid, to_codes


@dataclass(frozen=True, kw_only=True)
class GPTQConfig:
    """Options of the sweep.

    Attributes:
        damping: Added to the Hessian's diagonal, relative to its mean.
    """

    damping: float = 0.01
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN})

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise RecipeError(f"damping is {self.damping}, expected more than 0")

    def quantize(
        self, weight: Tensor, statistics: Statistics, grid: Grid, keep_mask: Tensor | None
    ) -> Codes:
        """Quantize ``weight``, float32 [N, K]; removed weights stay zero and pass no code."""
        factor = factorize(statistics.second_moment(weight.device), self.damping)
        swept = sweep(weight, factor, keep_mask=keep_mask, grid=grid)
        assert swept.scales is not None
        values = torch.round(swept.weight / grid.by_column(swept.scales, weight.shape[1]))
        return to_codes(values, swept.scales, keep_mask, grid)


GPTQ = GPTQConfig()
