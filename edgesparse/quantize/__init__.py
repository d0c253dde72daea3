"""Quantizers: weights to codes with scales.

A quantizer is a frozen dataclass of options with ``needs`` and ``quantize``; one row here, or one
``QUANTIZERS.register(name, config)``, makes it a ``quantizer`` of every recipe.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.packed import Codes
from edgesparse.quantize.grid import Grid
from edgesparse.registry import Registry


class Quantizer(Protocol):
    """One way to choose codes and scales.

    Attributes:
        needs: Statistics of the inputs it uses.
    """

    @property
    def needs(self) -> frozenset[Statistic]:
        """Statistics of the inputs it uses."""

    def quantize(
        self, weight: Tensor, statistics: Statistics, grid: Grid, keep_mask: Tensor | None
    ) -> Codes:
        """Quantize ``weight``, float32 [N, K], on a fixed mask (None: all kept)."""


QUANTIZERS: Registry[Quantizer] = Registry(
    "quantizer",
    {
        "rtn": "edgesparse.quantize.rtn:RTN",
        "gptq": "edgesparse.quantize.gptq:GPTQ",
    },
)
