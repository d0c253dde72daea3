"""The symmetric grid: ``value = code · scale``, codes in ``[-2**(b-1), 2**(b-1) - 1]``.

Scales have at most 8 significant bits (they are bfloat16 and float16 values at once) and are
chosen before the codes. A 4-bit code times such a scale has at most 11 significant bits: decoding
in float16, in float32 or with bfloat16 scales gives the same number bit for bit. A group of zeros
has scale 1.

What a grid needs beside the codes is its *steps*, a tensor [N, G, ...]: which numbers there are for
a row and group. Here that is the scale; with zeros (``shifted``) scale and zero; with a table
(``table``) all of its entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from edgesparse_kernels.scales import least_error as scales_of_least_error
from torch import Tensor

from edgesparse.packed import Codes

# Shrinks of the scale that maps the largest weight of a group to the edge of the grid.
SHRINKS = torch.linspace(1.0, 0.4, 31).tolist()
_AT_ONCE = 1 << 24  # floats of one step of a search on a GPU: 64 MB
SMALLEST = 2.0**-24
LARGEST = 2.0**15


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Codes of ``bits`` bits with one scale for ``group_size`` neighbouring columns.

    Attributes:
        bits: Bits of a code.
        group_size: Columns that share a scale.
        is_shared: All rows have the same steps; a group is then all columns.
    """

    bits: int
    group_size: int
    is_shared: bool = False

    @property
    def significant_bits(self) -> int:
        """Significant bits of a scale."""
        return 8

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The highest code."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """Return the number of scales of a row."""
        return -(-columns // self.group_size)

    def codes(self, weight: Tensor, scales: Tensor) -> Tensor:
        """Return the nearest codes as float32; ``scales`` broadcasts against ``weight``."""
        return (weight / scales).round_().clamp_(self.lowest, self.highest)

    def nearest(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest values of the grid for one column.

        Args:
            weight: float32 [N].
            steps: Those of the column's group, [N, ...].
        """
        return self.codes(weight, steps).mul_(steps)

    def limits(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest multiple of each scale, broadcasting with scales."""
        return steps.new_tensor(self.lowest), steps.new_tensor(self.highest)

    def scales(self, steps: Tensor) -> Tensor:
        """Return the scales [N, G] in ``steps``."""
        return steps

    def with_scales(self, steps: Tensor, scales: Tensor) -> Tensor:
        """Return ``steps`` with other scales [N, G]."""
        return scales

    def round_scale(self, scales: Tensor) -> Tensor:
        """Return the nearest scales that may be stored; see ``round_scale``."""
        return round_scale(scales, self.bits)

    def as_codes(self, weight: Tensor, steps: Tensor, keep_mask: Tensor | None) -> Codes:
        """Return a weight [N, K] that lies on the grid as ``Codes``; None keeps all."""
        values = (weight / self.by_column(steps, weight.shape[1])).round()
        return to_codes(values, steps, keep_mask, self)

    def round(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest values of the grid for a whole weight [N, K]."""
        by_column = self.by_column(steps, weight.shape[1])
        return self.codes(weight, by_column).mul_(by_column)

    def search_group(self, weight: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return the steps of every row of one group: the scale, float32 [N].

        Tries 31 shrinks of the full range and keeps the least ``sum(importance · error²)``.

        Args:
            weight: float32 [N, g].
            importance: float32 [g], not negative; None counts all alike.
        """
        largest = weight.abs().amax(1)
        shrinks = torch.tensor(SHRINKS, device=weight.device)
        scales = round_scale(largest[:, None] * shrinks / (-self.lowest - 0.5), self.bits)
        best = self.least_error(weight, scales, None, importance)
        chosen = scales.gather(1, best[:, None])[:, 0]
        return torch.where(largest > 0, chosen, torch.ones_like(largest))

    def least_error(
        self, weight: Tensor, scales: Tensor, zeros: Tensor | None, importance: Tensor | None
    ) -> Tensor:
        """Return which of the trials rounds each row of a group best, int64 [N].

        Args:
            weight: float32 [N, g].
            scales: float32 [N, S].
            zeros: float32 [N, S]; None for none.
            importance: float32 [g]; None counts all alike.
        """
        if weight.device.type == "cpu":
            weight, scales = weight.detach(), scales.detach()
            found = scales_of_least_error(
                weight.numpy(),
                scales.numpy(),
                None if zeros is None else zeros.detach().numpy(),
                None if importance is None else importance.numpy(),
                lowest=self.lowest,
                highest=self.highest,
                threads=torch.get_num_threads(),
            )
            return torch.from_numpy(found)
        if zeros is None:
            zeros = scales.new_zeros(()).expand_as(scales)
        rows = max(1, _AT_ONCE // (weight.shape[1] * scales.shape[1]))
        trials = max(1, min(scales.shape[1], _AT_ONCE // weight.shape[1]))  # of a very long row
        costs = []
        for w, *steps in zip(*(torch.split(t, rows) for t in (weight, scales, zeros)), strict=True):
            some = zip(*(torch.split(t, trials, 1) for t in steps), strict=True)
            costs.append(torch.cat([self._costs(w, s, z, importance) for s, z in some], 1))
        return torch.cat(costs).argmin(1)

    def _costs(
        self, weight: Tensor, scales: Tensor, zeros: Tensor, importance: Tensor | None
    ) -> Tensor:
        """Return the error of every trial [N, S] with rows of a group [N, g]."""
        weight, scale, zero = weight[:, None, :], scales[:, :, None], zeros[:, :, None]
        codes = (weight / scale).round_().add_(zero).clamp_(self.lowest, self.highest)
        error = codes.sub_(zero).mul_(scale).sub_(weight).square_()
        return error.sum(2) if importance is None else error @ importance

    def search(self, weight: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return the steps of a whole weight, [N, G, ...]; see ``search_group``.

        Args:
            weight: float32 [N, K].
            importance: float32 [K] or None.
        """
        if self.is_shared and weight.numel():
            counts = None if importance is None else importance.repeat(len(weight))
            steps = self.search_group(weight.reshape(1, -1), counts)[:, None]
            return steps.expand(len(weight), *steps.shape[1:]).contiguous()
        parts = torch.split(weight, self.group_size, 1)
        if importance is None:
            return torch.stack([self.search_group(part) for part in parts], 1)
        by_group = torch.split(importance, self.group_size)
        return torch.stack(
            [self.search_group(p, i) for p, i in zip(parts, by_group, strict=True)], 1
        )

    def by_column(self, scales: Tensor, columns: int) -> Tensor:
        """Return scales or zeros [N, G] repeated for each column, [N, K]."""
        wide = scales[:, :, None].expand(-1, -1, self.group_size)
        return wide.reshape(len(scales), -1)[:, :columns]


def round_scale(scales: Tensor, bits: int) -> Tensor:
    """Return the nearest scales that are bfloat16 and float16 values and overflow neither."""
    largest = LARGEST / (1 << (bits - 1))
    clamped = scales.clamp(SMALLEST, largest)
    return clamped.to(torch.bfloat16).to(torch.float16).float().clamp_(min=SMALLEST)


def to_codes(
    values: Tensor,
    scales: Tensor,
    keep_mask: Tensor | None,
    grid: Grid,
    *,
    zeros: Tensor | None = None,
) -> Codes:
    """Return the solver's tensors as ``Codes`` of shape [N, K].

    Args:
        values: Codes in any real type, [N, K].
        scales: float32 [N, G] that ``round_scale`` made.
        keep_mask: bool [N, K], or None for all kept.
        grid: The grid the codes lie on.
        zeros: Of the asymmetric grid, [N, G].
    """
    if keep_mask is None:
        keep_mask = torch.ones_like(values, dtype=torch.bool)
    return Codes(
        values=(values * keep_mask).to(torch.int8).cpu().numpy(),
        scales=scales.to(torch.float16).cpu().numpy(),
        keep_mask=keep_mask.cpu().numpy(),
        bits=grid.bits,
        group_size=grid.group_size,
        zeros=None if zeros is None else zeros.to(torch.int8).cpu().numpy(),
    )


def to_float16(weight: Tensor, keep_mask: Tensor) -> Codes:
    """Return a pruned weight [N, K] with float16 values as ``Codes``."""
    return Codes(
        values=(weight * keep_mask).to(torch.float16).cpu().numpy(),
        scales=np.zeros((len(weight), 0), np.float16),
        keep_mask=keep_mask.cpu().numpy(),
        bits=16,
        group_size=0,
    )
