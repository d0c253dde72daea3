"""A packed weight as something that can be trained: latent values, log scales, a frozen mask.

The forward value is exactly what will be packed, ``clamp(round(w / s)) · s`` with ``s`` rounded to
what is stored; gradients pass both roundings straight through (Esser et al. 2020, LSQ,
arXiv 1902.08153). Scales are trained by their logarithm, so that one step size suits all. Zeros of
asymmetric codes stay as they are. Where there is a table its entries are trained, in units of their
standard deviation, and a value is the entry nearest to its latent one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate.inputs import as_matrix
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import Pattern
from edgesparse.quantize.grid import Grid, to_float16
from edgesparse.quantize.table import TableGrid
from edgesparse.solve import grid_of

_LARGEST = torch.finfo(torch.float16).max


class LatentWeight(nn.Module):
    """The trainable form of one packed tensor.

    Attributes:
        values: float32 [N, K], the weight before rounding.
        log_scales: float32 [N, G], natural logarithms; [1, 1] where all rows of a tensor have one
            scale, which they then keep in common; [N, 0] for float16 values; with a table
            [T, 2**bits], how far its entries have moved, in their standard deviations.
        keep_mask: bool [N, K], never changed.
    """

    keep_mask: Tensor
    zeros: Tensor | None
    table: Tensor | None

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        codes = packed.codes
        self._packed = packed
        self.values = nn.Parameter(as_matrix(torch.from_numpy(codes.decode())).clone())
        mask = torch.from_numpy(codes.keep_mask).reshape(self.values.shape)
        self.register_buffer("keep_mask", mask.clone())
        columns = self.values.shape[1]
        shared = codes.bits < 16 and _is_shared(codes)
        self._grid = grid_of(packed.spec, columns, is_shared=shared) if codes.bits < 16 else None
        if codes.table is not None:
            table = torch.from_numpy(codes.table.astype("float32"))
            moved = torch.zeros_like(table)
        else:
            table = None
            moved = torch.from_numpy(codes.scales[: 1 if shared else None].astype("float32")).log()
        zeros = None if codes.zeros is None else torch.from_numpy(codes.zeros.astype("float32"))
        self.register_buffer("zeros", zeros)
        self.register_buffer("table", table)
        self.log_scales = nn.Parameter(moved, requires_grad=codes.bits < 16)

    def forward(self) -> Tensor:
        """Return the weight as it would be shipped, float32 in its own shape."""
        return self._shipped().reshape(self._packed.shape)

    def _shipped(self) -> Tensor:
        if self._grid is None:
            kept = self.values * self.keep_mask
            return _through(kept, kept.half().float())
        if isinstance(self._grid, TableGrid):
            looked_up: Tensor = _InTable.apply(  # type: ignore[no-untyped-call]
                self.values, self._steps(), self.keep_mask, self._grid
            )
            return looked_up
        rounded: Tensor = _OnGrid.apply(  # type: ignore[no-untyped-call]
            self.values, self._scales(), self.zeros, self.keep_mask, self._grid
        )
        return rounded

    def _scales(self) -> Tensor:
        """Return the scales as stored, with the gradient of the unrounded ones."""
        assert self._grid is not None
        exact = self.log_scales.exp().expand(len(self.values), -1)
        return _through(exact, self._grid.round_scale(exact))

    def _steps(self) -> Tensor:
        """Return the steps of the grid as stored; see ``quantize.grid``."""
        if self.table is not None:
            assert isinstance(self._grid, TableGrid)
            deviation = self.table.std(1, keepdim=True).clamp(min=1e-6)
            exact = (self.table + deviation * self.log_scales).clamp(-_LARGEST, _LARGEST)
            stored = _through(exact, exact.half().float()).sort(1).values
            return self._grid.steps_of(stored, len(self.values))
        scales = self._scales()
        return scales if self.zeros is None else torch.stack([scales, self.zeros], -1)

    @torch.no_grad()
    def restart(self, weight: Tensor) -> None:
        """Set the values back to a dense weight [N, K], with all kept and scales searched anew."""
        self.values.copy_(weight)
        self.keep_mask.fill_(True)
        if isinstance(self._grid, TableGrid) and self.table is not None:
            steps = self._grid.search_tables(self.values, None, None)
            self.table.copy_(self._grid.tables_of(steps))
            self.log_scales.zero_()
        elif self._grid is not None:
            steps = self._grid.search(self.values)
            self.log_scales.copy_(self._grid.scales(steps)[: len(self.log_scales)].log())
            if self.zeros is not None:
                self.zeros.copy_(steps[..., 1])

    @torch.no_grad()
    def pack(self, pattern: Pattern) -> PackedTensor:
        """Return the weight packed in the format it came from, under the same mask."""
        shipped = self._shipped()
        if self._grid is None:
            codes = to_float16(shipped, self.keep_mask)
        else:
            codes = self._grid.as_codes(shipped, self._steps(), self.keep_mask)
        shaped = replace(
            codes,
            values=codes.values.reshape(self._packed.shape),
            keep_mask=codes.keep_mask.reshape(self._packed.shape),
        )
        return FORMATS.get(self._packed.spec.name).pack(shaped, pattern=pattern)


def _is_shared(codes: Codes) -> bool:
    """Whether all rows have the same scale, and the same zero: one for the tensor."""
    one_group = codes.scales.shape[1] == 1 and len(codes.scales) > 1
    if not one_group or (codes.scales != codes.scales[0]).any():
        return False
    return codes.zeros is None or bool((codes.zeros == codes.zeros[0]).all())


class _OnGrid(torch.autograd.Function):
    """Round kept values to the grid, with a backward pass written out to launch few kernels.

    Gradients (LSQ): of a value, the output's where it is inside the grid; of a scale, the sum of
    the output's times ``code - w / s`` inside and ``code`` outside.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        keep_mask: Tensor,
        grid: Grid,
    ) -> Tensor:
        by_column = grid.by_column(scales, values.shape[1])
        ratio = (values / by_column).mul_(keep_mask)
        if zeros is None:
            codes = ratio.round().clamp_(grid.lowest, grid.highest)
        else:
            shift = grid.by_column(zeros, values.shape[1])
            codes = (ratio.round() + shift).clamp_(grid.lowest, grid.highest).sub_(shift)
        ctx.save_for_backward(ratio, codes, keep_mask)
        ctx.grid = grid
        return codes * by_column

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        ratio, codes, keep_mask = ctx.saved_tensors
        grid: Grid = ctx.grid
        inside = (ratio - codes).abs_() <= 0.5  # further off it was clamped
        by_column = gradient * (codes - ratio * inside)
        padding = -by_column.shape[1] % grid.group_size
        if padding:
            by_column = nn.functional.pad(by_column, (0, padding))
        by_group = by_column.reshape(len(by_column), -1, grid.group_size).sum(2)
        return gradient * (inside & keep_mask), by_group, None, None, None


class _InTable(torch.autograd.Function):
    """Take the entry nearest to each kept value.

    Gradients: of a value, the output's; of an entry, the sum of the output's where it was taken.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, steps: Tensor, keep_mask: Tensor, grid: TableGrid
    ) -> Tensor:
        index = grid.indices(values, steps)
        ctx.save_for_backward(index, keep_mask)
        ctx.shape = steps.shape
        return steps[:, 0].gather(1, index) * keep_mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        index, keep_mask = ctx.saved_tensors
        kept = gradient * keep_mask
        taken = kept.new_zeros(ctx.shape[0], ctx.shape[2]).scatter_add_(1, index, kept)
        return kept, taken[:, None], None, None


def _through(exact: Tensor, rounded: Tensor) -> Tensor:
    """Return ``rounded``, bit for bit, with the gradient of ``exact``."""
    return rounded.detach() + (exact - exact.detach())
