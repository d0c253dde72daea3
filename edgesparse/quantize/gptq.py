"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round column by column, repair in what follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.errors import RecipeError
from edgesparse.packed import SCHEMES, Codes
from edgesparse.prune.admm import damped, refit
from edgesparse.prune.obs import factorize, sweep
from edgesparse.quantize.grid import Grid
from edgesparse.quantize.refine import refine
from edgesparse.quantize.table import TableGrid


@dataclass(frozen=True, kw_only=True)
class GPTQConfig:
    """Options of the sweep.

    Attributes:
        damping: Added to the Hessian's diagonal, relative to its mean.
        refit: Conjugate-gradient steps that refit the weight to a given mask before rounding.
        sweeps: Rounds of coordinate descent afterwards (``refine``).
        refine_up_to: Bits up to which those are done. They lower the layers' error always, but
            the perplexity only where rounding is coarse (26 M language model, × dense: 3 bits
            1.054 → 1.042, 4 bits 1.001 → 1.003).
    """

    damping: float = 0.01
    refit: int = 20
    sweeps: int = 1
    refine_up_to: int = 3
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.HESSIAN, Statistic.DENSE_TARGET})
    schemes: ClassVar[frozenset[str]] = frozenset(SCHEMES)

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise RecipeError(f"damping is {self.damping}, expected more than 0")

    def quantize(
        self, weight: Tensor, statistics: Statistics, grid: Grid, keep_mask: Tensor | None
    ) -> Codes:
        """Quantize ``weight``, float32 [N, K]; removed weights stay zero and pass no code."""
        H = damped(statistics.second_moment(weight.device), self.damping)
        if keep_mask is not None:
            weight = refit(weight * keep_mask, weight, H, keep_mask, steps=self.refit)
        steps = None
        if isinstance(grid, TableGrid):
            steps = grid.search_tables(weight, H.diagonal(), keep_mask)
        factor = factorize(statistics.second_moment(weight.device), self.damping)
        swept = sweep(weight, factor, keep_mask=keep_mask, grid=grid, steps=steps)
        assert swept.steps is not None
        values, steps = swept.weight, swept.steps
        if grid.bits <= self.refine_up_to:
            values, steps = refine(
                values, steps, weight, H, grid, keep_mask=keep_mask, sweeps=self.sweeps
            )
        return grid.as_codes(values, steps, keep_mask)


GPTQ = GPTQConfig()
