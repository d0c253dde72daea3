"""A packed weight as something that can be trained: latent values, log scales, a frozen mask.

The forward value is exactly what will be packed, ``clamp(round(w / s)) · s`` with ``s`` rounded to
its 8 significant bits; gradients pass both roundings straight through (Esser et al. 2020, LSQ,
arXiv 1902.08153). Scales are trained by their logarithm, so that one step size suits all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate.inputs import as_matrix
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import Pattern
from edgesparse.quantize.grid import Grid, round_scale, to_codes, to_float16


class LatentWeight(nn.Module):
    """The trainable form of one packed tensor.

    Attributes:
        values: float32 [N, K], the weight before rounding.
        log_scales: float32 [N, G], natural logarithms; [N, 0] for float16 values.
        keep_mask: bool [N, K], never changed.
    """

    keep_mask: Tensor

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        codes = packed.codes
        self._packed = packed
        self.values = nn.Parameter(as_matrix(torch.from_numpy(codes.decode())).clone())
        scales = torch.from_numpy(codes.scales.astype("float32"))
        self.log_scales = nn.Parameter(scales.log(), requires_grad=codes.bits < 16)
        mask = torch.from_numpy(codes.keep_mask).reshape(self.values.shape)
        self.register_buffer("keep_mask", mask.clone())
        self._grid = Grid(bits=codes.bits, group_size=codes.group_size) if codes.bits < 16 else None

    def forward(self) -> Tensor:
        """Return the weight as it would be shipped, float32 in its own shape."""
        return self._shipped().reshape(self._packed.shape)

    def _shipped(self) -> Tensor:
        if self._grid is None:
            kept = self.values * self.keep_mask
            return _through(kept, kept.half().float())
        grid = self._grid
        rounded: Tensor = _OnGrid.apply(  # type: ignore[no-untyped-call]
            self.values, self._scales(), self.keep_mask, grid
        )
        return rounded

    def _scales(self) -> Tensor:
        """Return the scales as stored, with the gradient of the unrounded ones."""
        assert self._grid is not None
        exact = self.log_scales.exp()
        return _through(exact, round_scale(exact, self._grid.bits))

    @torch.no_grad()
    def pack(self, pattern: Pattern) -> PackedTensor:
        """Return the weight packed in the format it came from, under the same mask."""
        shipped = self._shipped()
        if self._grid is None:
            codes = to_float16(shipped, self.keep_mask)
        else:
            scales = self._scales()
            values = (shipped / self._grid.by_column(scales, shipped.shape[1])).round()
            codes = to_codes(values, scales, self.keep_mask, self._grid)
        shaped = Codes(
            values=codes.values.reshape(self._packed.shape),
            scales=codes.scales,
            keep_mask=codes.keep_mask.reshape(self._packed.shape),
            bits=codes.bits,
            group_size=codes.group_size,
        )
        return FORMATS.get(self._packed.spec.name).pack(shaped, pattern=pattern)


class _OnGrid(torch.autograd.Function):
    """Round kept values to the grid, with a backward pass written out to launch few kernels.

    Gradients (LSQ): of a value, the output's where it is inside the grid; of a scale, the sum of
    the output's times ``code - w / s`` inside and ``code`` outside.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, scales: Tensor, keep_mask: Tensor, grid: Grid) -> Tensor:
        by_column = grid.by_column(scales, values.shape[1])
        ratio = (values / by_column).mul_(keep_mask)
        codes = ratio.round().clamp_(grid.lowest, grid.highest)
        ctx.save_for_backward(ratio, codes, keep_mask)
        ctx.grid = grid
        return codes * by_column

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, codes, keep_mask = ctx.saved_tensors
        grid: Grid = ctx.grid
        inside = (ratio >= grid.lowest - 0.5) & (ratio <= grid.highest + 0.5)
        by_column = gradient * (codes - ratio * inside)
        padding = -by_column.shape[1] % grid.group_size
        if padding:
            by_column = nn.functional.pad(by_column, (0, padding))
        by_group = by_column.reshape(len(by_column), -1, grid.group_size).sum(2)
        return gradient * (inside & keep_mask), by_group, None, None


def _through(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, bit for bit, with the gradient of ``exact``."""
    return rounded.detach() + (exact - exact.detach())
