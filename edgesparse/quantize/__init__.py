"""Quantizers: weights to codes, with scales, scales and zeros, or tables.

A quantizer is a frozen dataclass of options with ``needs`` and ``quantize``; one row here, or one
``QUANTIZERS.register(name, config)``, makes it a ``quantizer`` of every recipe. One that finds more
than symmetric codes says so in ``schemes``; it takes whatever numbers there are from its ``grid``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.errors import RecipeError
from edgesparse.packed import SYMMETRIC, Codes
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


def require_scheme(name: str, scheme: str) -> None:
    """Check that the quantizer ``name`` finds codes of ``scheme``.

    Raises:
        UnknownName: No such quantizer.
        RecipeError: It does not.
    """
    found: frozenset[str] = getattr(QUANTIZERS.get(name), "schemes", frozenset({SYMMETRIC}))
    if scheme not in found:
        raise RecipeError(
            f"quantizer {name!r} finds no {scheme} codes, only {', '.join(sorted(found))}; use "
            f"quantizer gptq or rtn, or scheme {SYMMETRIC!r}"
        )
