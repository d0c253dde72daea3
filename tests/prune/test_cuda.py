"""Loops recorded as CUDA graphs compute what the same loops compute step by step."""

import pytest
import torch
from torch import Tensor

from edgesparse.calibrate.factor import factorize
from edgesparse.prune import obs, recorded
from edgesparse.quantize.grid import Grid
from edgesparse.quantize.refine import refine
from edgesparse.quantize.shifted import ShiftedGrid
from edgesparse.quantize.table import TableGrid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GRIDS = {
    "none": None,
    "symmetric": Grid(bits=4, group_size=32),
    "asymmetric": ShiftedGrid(bits=4, group_size=128),
    "table": TableGrid(bits=3, group_size=200),
}


def results(grid: Grid | None, monkeypatch: pytest.MonkeyPatch, *, records: bool) -> list[Tensor]:
    """Sweep, and refine, two weights of one shape one after the other."""
    if not records:
        monkeypatch.setattr(recorded, "_FEWEST", 1 << 30)
    found = []
    for seed in range(2):
        generator = torch.Generator("cuda").manual_seed(seed)
        W = torch.randn(40, 200, device="cuda", generator=generator)
        X = torch.randn(500, 200, device="cuda", generator=generator)
        keep, H = W.abs() > 0.5, X.T @ X
        steps = None
        if isinstance(grid, TableGrid):
            steps = grid.search_tables(W, None, keep)
        elif grid is not None:
            steps = grid.search(W)
        swept = obs.sweep(W, factorize(H, 0.01), keep_mask=keep, grid=grid, steps=steps)
        found.append(swept.weight)
        if grid is not None and steps is not None:
            found += refine(swept.weight, steps, W, H, grid, keep_mask=keep, sweeps=1)
    return found


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_recorded_loops_give_the_same_bits(
    grid: Grid | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded._recorded.cache_clear()
    fast = results(grid, monkeypatch, records=True)
    assert recorded._recorded.cache_info().currsize
    slow = results(grid, monkeypatch, records=False)
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
