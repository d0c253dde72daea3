"""The asymmetric grid: ``value = (code - zero) · scale``, the zero a code of its group.

The difference of two codes takes as many bits as a code, without its sign, so scales have at most 7
significant bits with 4-bit codes (8 with 2 and 3): products keep 11 bits and are exact in float16,
as on the symmetric grid. With 8-bit codes scales have 8 bits and products are exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgesparse.packed import Codes
from edgesparse.quantize.grid import LARGEST, SHRINKS, SMALLEST, Grid, to_codes


@dataclass(frozen=True, kw_only=True)
class ShiftedGrid(Grid):
    """Steps are [N, G, 2]: scale and zero."""

    @property
    def significant_bits(self) -> int:
        """Significant bits of a scale."""
        return 7 if self.bits == 4 else 8

    def nearest(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest values of the grid for one column; see ``Grid.nearest``."""
        scale, zero = steps[..., 0], steps[..., 1]
        return self._shifted(weight, scale, zero).sub_(zero).mul_(scale)

    def limits(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest multiple of each scale, [N, G]."""
        return self.lowest - steps[..., 1], self.highest - steps[..., 1]

    def scales(self, steps: Tensor) -> Tensor:
        """Return the scales [N, G] in ``steps``."""
        return steps[..., 0]

    def with_scales(self, steps: Tensor, scales: Tensor) -> Tensor:
        """Return ``steps`` with other scales [N, G]."""
        return torch.stack([scales, steps[..., 1]], -1)

    def round_scale(self, scales: Tensor) -> Tensor:
        """Return the nearest scales that may be stored."""
        clamped = scales.clamp(SMALLEST, LARGEST / (1 << self.bits))
        mantissa, exponent = torch.frexp(clamped)
        kept = 1 << self.significant_bits
        rounded = torch.ldexp((mantissa * kept).round_().div_(kept), exponent)
        return rounded.to(torch.float16).float().clamp_(min=SMALLEST)

    def as_codes(self, weight: Tensor, steps: Tensor, keep_mask: Tensor | None) -> Codes:
        """Return a weight [N, K] that lies on the grid as ``Codes``; None keeps all."""
        columns = weight.shape[1]
        multiples = (weight / self.by_column(steps[..., 0], columns)).round()
        values = multiples + self.by_column(steps[..., 1], columns)
        return to_codes(values, steps[..., 0], keep_mask, self, zeros=steps[..., 1])

    def round(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest values of the grid for a whole weight [N, K]."""
        scale, zero = (self.by_column(steps[..., i], weight.shape[1]) for i in range(2))
        return self._shifted(weight, scale, zero).sub_(zero).mul_(scale)

    def search_group(self, weight: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return scale and zero of every row of one group, float32 [N, 2].

        Tries 31 shrinks of the range, each with its three likeliest zeros, and of the symmetric
        grid; keeps the least ``sum(importance · error²)``.

        Args:
            weight: float32 [N, g].
            importance: float32 [g], not negative; None counts all alike.
        """
        tried = self._candidates(weight)
        best = self.least_error(weight, tried[..., 0], tried[..., 1], importance)
        chosen = tried.gather(1, best[:, None, None].expand(-1, 1, 2))[:, 0]
        empty = (weight == 0).all(1)
        chosen[empty, 0], chosen[empty, 1] = 1.0, 0.0
        return chosen

    def _shifted(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Return the nearest codes as float32."""
        return (weight / scale).round_().add_(zero).clamp_(self.lowest, self.highest)

    def _candidates(self, weight: Tensor) -> Tensor:
        """Return steps to try for every row of a group, [N, S, 2]."""
        low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True)
        high = high.clamp(min=0)
        shrinks = torch.tensor(SHRINKS, device=weight.device)
        scales = self.round_scale((high - low) * shrinks / (self.highest - self.lowest))
        middle = (self.lowest - low * shrinks / scales).round_()
        zeros = [(middle + i).clamp_(self.lowest, self.highest) for i in (0, -1, 1)]
        largest = torch.maximum(high, -low)
        plain = self.round_scale(largest * shrinks / (0.5 - self.lowest))
        return torch.stack(
            [torch.cat([scales, scales, scales, plain], 1), torch.cat([*zeros, plain * 0], 1)], 2
        )
