"""The sweep over columns beside the same thing written one row and one column at a time."""

import pytest
import torch
from torch import Tensor

from edgesparse.calibrate.factor import factorize
from edgesparse.pattern import Pattern
from edgesparse.prune.obs import sweep
from edgesparse.quantize.grid import Grid

SHAPES = [(1, 1), (3, 5), (2, 128), (5, 129), (4, 300)]


def problem(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    X = torch.randn(3 * columns, columns, generator=generator)
    mix = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / columns
    X = X @ mix
    return torch.randn(rows, columns, generator=generator), X.T @ X


def plain(W: Tensor, U: Tensor, keep: Tensor, grid: Grid | None, scales: Tensor | None) -> Tensor:
    """Fix one weight after the other in float64; return what is there in the end."""
    W, U = W.double(), U.double()
    for row in range(W.shape[0]):
        for j in range(W.shape[1]):
            w, fixed = W[row, j].item(), 0.0
            if keep[row, j]:
                fixed = w
                if grid is not None and scales is not None:
                    scale = scales[row, j // grid.group_size].item()
                    fixed = min(max(round(w / scale), grid.lowest), grid.highest) * scale
            W[row, j + 1 :] -= (w - fixed) / U[j, j] * U[j, j + 1 :]
            W[row, j] = fixed
    return W.float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [16, 8, 3])
def test_a_given_mask_gives_what_one_weight_at_a_time_gives(
    shape: tuple[int, int], bits: int
) -> None:
    W, H = problem(*shape)
    factor = factorize(H, 0.01)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    grid = None if bits == 16 else Grid(bits=bits, group_size=32)
    steps = None if grid is None else grid.search(W)
    found = sweep(W, factor, keep_mask=keep, grid=grid, steps=steps)
    assert torch.equal(found.keep_mask, keep)
    wanted = plain(W, factor.upper, keep, grid, steps)
    different = ~torch.isclose(found.weight, wanted, rtol=1e-3, atol=1e-4)
    # A value in the middle of two codes goes either way, and its row with it from there on.
    assert not different[:, 0].any()
    assert int(different.any(1).sum()) <= (0 if grid is None else shape[0] // 4)


@pytest.mark.parametrize("group_size", [32, 48, 128, 256])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "6:12", "1x16"])
def test_the_mask_a_sweep_chose_and_its_scales_lead_to_the_same_again(
    pattern: str, group_size: int
) -> None:
    W, H = problem(6, 300)
    factor = factorize(H, 0.01)
    grid = Grid(bits=4, group_size=group_size)
    first = sweep(W, factor, pattern=Pattern.parse(pattern, sparsity=0.5), grid=grid)
    again = sweep(W, factor, keep_mask=first.keep_mask, grid=grid, steps=first.steps)
    assert torch.allclose(again.weight, first.weight, atol=1e-3)
    assert first.steps is not None
    assert first.steps.shape == (6, -(-300 // group_size))


def test_columns_in_another_order_have_the_scales_of_their_own_groups() -> None:
    W, H = problem(3, 96)
    grid = Grid(bits=4, group_size=32)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(2))
    steps = grid.search(W)
    found = sweep(
        W[:, order],
        factorize(H[order][:, order], 0.01),
        grid=grid,
        steps=steps,
        group_of=(order // 32).tolist(),
    )
    by_column = grid.by_column(steps, 96)[:, order]
    codes = found.weight / by_column
    assert torch.equal(codes.round() * by_column, found.weight)
    assert float(codes.abs().max()) <= 8
