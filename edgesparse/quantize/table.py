"""Tables: any ``2**bits`` float16 values, shared by a weight or by neighbouring rows of it.

The entries are cluster centers in one dimension (Lloyd 1982), each weight counting by the second
moment of its input, as the output's error does where inputs are independent. Weights are sorted
once; an iteration then costs one search for each boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgesparse.packed import Codes, table_count
from edgesparse.quantize.grid import Grid

_ITERATIONS = 100
_BINS = 1024


@dataclass(frozen=True, kw_only=True)
class TableGrid(Grid):
    """Steps are [N, 1, 2**bits]: the entries of each row's table, ascending.

    Attributes:
        group_size: All columns of the weight.
        table_rows: Rows that share a table; 0 for one table of all.
    """

    table_rows: int = 0

    def nearest(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest entries for one column; see ``Grid.nearest``."""
        return self._look_up(weight[:, None], steps)[:, 0]

    def round(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return the nearest entries for a whole weight [N, K]."""
        return self._look_up(weight, steps[:, 0])

    def as_codes(self, weight: Tensor, steps: Tensor, keep_mask: Tensor | None) -> Codes:
        """Return a weight [N, K] of entries as ``Codes``; None keeps all."""
        rows = len(weight)
        if keep_mask is None:
            keep_mask = torch.ones_like(weight, dtype=torch.bool)
        values = self.indices(weight, steps) * keep_mask
        table = (
            self.tables_of(steps)
            if rows
            else steps.new_zeros(table_count(0, self.table_rows), 1 << self.bits)
        )
        return Codes(
            values=values.to(torch.int8).cpu().numpy(),
            scales=np.zeros((rows, 0), np.float16),
            keep_mask=keep_mask.cpu().numpy(),
            bits=self.bits,
            group_size=0,
            table=table.to(torch.float16).cpu().numpy(),
            table_rows=self.table_rows,
        )

    def indices(self, weight: Tensor, steps: Tensor) -> Tensor:
        """Return which entry of its table is nearest to each weight, int64 [N, K]."""
        return _indices(weight, steps[:, 0])

    def row_slices(self, rows: int) -> list[slice]:
        """Return the rows of each table."""
        each = self.table_rows or max(1, rows)
        return [slice(start, min(start + each, rows)) for start in range(0, rows, each)]

    def tables_of(self, steps: Tensor) -> Tensor:
        """Return the tables in ``steps``, float64 [tables, 2**bits]."""
        return steps[:: self.table_rows or max(1, len(steps)), 0].double()

    def steps_of(self, tables: Tensor, rows: int) -> Tensor:
        """Return the steps of a weight with these tables; the inverse of ``tables_of``."""
        which = torch.arange(rows, device=tables.device) // (self.table_rows or max(1, rows))
        return tables.float()[which][:, None]

    def search_tables(
        self, weight: Tensor, importance: Tensor | None, keep_mask: Tensor | None
    ) -> Tensor:
        """Return the steps of a weight: the entries of least ``sum(importance · error²)``.

        Args:
            weight: float32 [N, K].
            importance: float32 [K], not negative; None counts all columns alike.
            keep_mask: bool [N, K]; removed weights count for nothing. None keeps all.
        """
        counts = torch.ones_like(weight) if importance is None else importance.expand_as(weight)
        if keep_mask is not None:
            counts = counts * keep_mask
        tables = [
            cluster(weight[rows], counts[rows], 1 << self.bits)
            for rows in self.row_slices(len(weight))
        ]
        return self.steps_of(torch.stack(tables), len(weight))

    def _look_up(self, weight: Tensor, entries: Tensor) -> Tensor:
        """Return the nearest of each row's ``entries`` [N, 2**bits] for weights [N, C]."""
        return entries.gather(1, _indices(weight, entries))


def cluster(values: Tensor, counts: Tensor, size: int) -> Tensor:
    """Return ``size`` float16 values as float32, ascending, of least ``sum(counts · error²)``.

    Starts where an optimal quantizer of many levels would have its entries, at equal steps of the
    cube root of the density (Panter & Dite 1951), and takes means until nothing moves.

    Args:
        values: float32, any shape.
        counts: Of the same shape, not negative; what counts 0 is not there.
        size: Entries of the table.
    """
    flat, order = values.reshape(-1).double().sort()
    weights = counts.reshape(-1)[order].double()
    flat, weights = flat[weights > 0], weights[weights > 0]
    if not flat.numel():
        return torch.zeros(size, device=values.device)
    mass = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
    moment = torch.cat([weights.new_zeros(1), (weights * flat).cumsum(0)])
    centers = _start(flat, weights, size)
    for _ in range(_ITERATIONS):
        cuts = torch.searchsorted(flat, (centers[1:] + centers[:-1]) / 2)
        ends = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), flat.numel())])
        share, sums = mass[ends].diff(), moment[ends].diff()
        moved = torch.where(share > 0, sums / share.clamp(min=1e-300), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    top = torch.finfo(torch.float16).max
    return centers.clamp(-top, top).to(torch.float16).float().sort().values


def _start(values: Tensor, weights: Tensor, size: int) -> Tensor:
    """Return first entries for sorted values: quantiles of the cube root of their density."""
    low, high = float(values[0]), float(values[-1])
    if low == high:
        return values.new_full((size,), low)
    width = (high - low) / _BINS
    bins = ((values - low) / width).long().clamp_(max=_BINS - 1)
    density = values.new_zeros(_BINS).index_add_(0, bins, weights)
    spread = torch.cat([values.new_zeros(1), (density ** (1 / 3)).cumsum(0)])
    wanted = (torch.arange(size, device=values.device, dtype=values.dtype) + 0.5) / size
    place = torch.searchsorted(spread, wanted * spread[-1]).clamp_(1, _BINS)
    inside = (wanted * spread[-1] - spread[place - 1]) / (spread[place] - spread[place - 1])
    return low + width * (place - 1 + inside)


def _indices(weight: Tensor, entries: Tensor) -> Tensor:
    """Return which of each row's ascending ``entries`` [N, E] is nearest to weights [N, C]."""
    middles = (entries[:, 1:] + entries[:, :-1]) / 2
    return torch.searchsorted(middles.contiguous(), weight.contiguous())
