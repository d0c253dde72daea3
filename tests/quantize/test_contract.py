"""What every quantizer in the registry promises, and what the grid is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.calibrate import Statistics
from edgesparse.packed import Codes
from edgesparse.prune.admm import damped
from edgesparse.quantize import QUANTIZERS
from edgesparse.quantize.gptq import GPTQConfig
from edgesparse.quantize.grid import Grid, round_scale
from edgesparse.quantize.refine import refine

BUILT_IN = ["rtn", "gptq"]
GRIDS = [Grid(bits=b, group_size=g) for b in (2, 3, 4, 8) for g in (16, 48, 128, 200)]


def problem(rows: int, columns: int) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = torch.randn(400, columns, generator=generator) @ (torch.eye(columns) + mix)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, Statistics(columns=columns, samples=400, hessian=X.T @ X)


def quantize(
    method: str, weight: torch.Tensor, data: Statistics, grid: Grid, mask: torch.Tensor | None
) -> Codes:
    return QUANTIZERS.get(method).quantize(weight, data, grid, mask)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("masked", [False, True])
def test_codes_lie_on_the_grid_and_the_mask(method: str, grid: Grid, masked: bool) -> None:
    weight, data = problem(24, 150)
    mask = weight.abs() > 0.6 if masked else None
    codes = quantize(method, weight, data, grid, mask)
    assert codes.scales.shape == (24, grid.groups(150))
    assert (codes.bits, codes.group_size) == (grid.bits, grid.group_size)
    assert np.array_equal(codes.keep_mask, np.ones((24, 150), bool) if mask is None else mask)
    again = quantize(method, weight, data, grid, mask)
    assert np.array_equal(codes.values, again.values)
    assert np.array_equal(codes.scales, again.scales)


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_scales_are_bfloat16_and_float16_values_at_once(method: str, grid: Grid) -> None:
    weight, data = problem(8, 150)
    scales = torch.from_numpy(quantize(method, weight, data, grid, None).scales).float()
    assert torch.equal(scales, scales.to(torch.bfloat16).float())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_times_scales_are_exact_in_float16(bits: int) -> None:
    weight, data = problem(8, 160)
    codes = quantize("gptq", weight, data, Grid(bits=bits, group_size=32), None)
    decoded = codes.decode()
    assert np.array_equal(decoded.astype(np.float16).astype(np.float32), decoded)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [16, 64])
def test_gptq_has_less_output_error_than_rounding_to_nearest(bits: int, group_size: int) -> None:
    weight, data = problem(48, 192)
    grid = Grid(bits=bits, group_size=group_size)
    error = {
        method: data.output_error(
            weight, torch.from_numpy(quantize(method, weight, data, grid, None).decode())
        )
        for method in BUILT_IN
    }
    assert error["gptq"] < error["rtn"]


def test_gptq_on_a_mask_repairs_what_masking_broke() -> None:
    weight, data = problem(48, 192)
    mask = weight.abs() > 0.67
    grid = Grid(bits=8, group_size=64)
    repaired = torch.from_numpy(quantize("gptq", weight, data, grid, mask).decode())
    assert data.output_error(weight, repaired) < 0.8 * data.output_error(weight, weight * mask)


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4, 33), torch.ones(1, 1), torch.full((2, 20), 1e-9), torch.full((2, 20), 3e4)],
    ids=["zeros", "one", "tiny", "huge"],
)
def test_degenerate_weights_have_finite_codes(method: str, weight: torch.Tensor) -> None:
    data = Statistics(
        columns=weight.shape[1], samples=1, hessian=torch.ones(weight.shape[1], weight.shape[1])
    )
    codes = quantize(method, weight, data, Grid(bits=4, group_size=16), None)
    assert np.isfinite(codes.decode()).all()
    if not weight.any():
        assert not codes.values.any()
        assert (codes.scales == 1).all()


class TestGrid:
    def test_the_range_is_the_whole_twos_complement(self) -> None:
        grid = Grid(bits=4, group_size=8)
        assert (grid.lowest, grid.highest) == (-8, 7)
        assert grid.codes(torch.tensor([-9.0, -8.4, 7.4, 8.0]), torch.tensor(1.0)).tolist() == [
            -8, -8, 7, 7,
        ]  # fmt: skip

    def test_by_hand_a_group_on_the_grid_is_found_without_error(self) -> None:
        weight = torch.tensor([[-4.0, 3.5, 1.0, 0.5, -0.5, 0.0, 2.0, -1.5]])
        scale = Grid(bits=4, group_size=8).search_group(weight)
        error = Grid(bits=4, group_size=8).codes(weight, scale[:, None]) * scale - weight
        assert scale.item() == pytest.approx(0.5, rel=0.07)
        assert error.abs().max() < 0.25

    def test_the_search_is_no_worse_than_any_scale_it_tries(self) -> None:
        weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
        grid = Grid(bits=3, group_size=32)
        found = grid.search_group(weight)[:, None]
        least = (grid.codes(weight, found) * found - weight).square().sum(1)
        for shrink in (1.0, 0.8, 0.6, 0.4):
            scale = round_scale(weight.abs().amax(1, keepdim=True) * shrink / 3.5, 3)
            error = (grid.codes(weight, scale) * scale - weight).square().sum(1)
            assert (least <= error + 1e-5).all()

    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    def test_whole_arrays_find_what_the_loop_finds(self, bits: int) -> None:
        """A GPU searches with whole arrays, a CPU with a compiled loop."""
        generator = torch.Generator().manual_seed(bits)
        weight, importance = torch.randn(50, 33, generator=generator), torch.rand(33)
        scales = torch.rand(50, 31, generator=generator) + 0.01
        zeros = torch.randint(-2, 2, (50, 31), generator=generator).float()
        grid = Grid(bits=bits, group_size=33)
        for counts in (importance, None):
            cost = grid._costs(weight, scales, zeros, counts)
            found = grid.least_error(weight, scales, zeros, counts)
            chosen = cost.gather(1, found[:, None])[:, 0]
            assert torch.allclose(chosen, cost.amin(1), rtol=1e-5, atol=0)

    @given(st.floats(min_value=1e-12, max_value=1e9), st.sampled_from([2, 3, 4, 8]))
    def test_a_scale_never_overflows_float16_with_any_code(self, scale: float, bits: int) -> None:
        rounded = round_scale(torch.tensor([scale]), bits)
        assert rounded > 0
        assert rounded == rounded.half().float() == rounded.bfloat16().float()
        assert torch.isfinite((rounded * -(1 << (bits - 1))).half()).all()


class TestRefine:
    @pytest.mark.parametrize("masked", [False, True])
    def test_every_sweep_lowers_the_error(self, masked: bool) -> None:
        weight, data = problem(16, 160)
        mask = weight.abs() > 0.6 if masked else torch.ones_like(weight, dtype=torch.bool)
        grid, H = Grid(bits=3, group_size=32), damped(data.second_moment(), 0.01)
        scales = grid.search(weight * mask)
        values = grid.round(weight * mask, scales)
        errors = []
        for sweeps in range(4):
            q, s = refine(values, scales, weight, H, grid, keep_mask=mask, sweeps=sweeps)
            assert not q[~mask].any()
            assert torch.equal(q, grid.round(q, s) * mask)
            gap = q - weight
            errors.append(float(((gap @ H) * gap).sum()))
        assert errors[0] > errors[1] > errors[2] >= errors[3]

    def test_by_hand_one_code_moves_to_its_best_value(self) -> None:
        # Target (1.4, 1.4), fully correlated inputs: codes (1, 1) miss 0.8 together; moving the
        # first to 2 misses only 0.2 on the other side.
        H = torch.tensor([[1.0, 0.999], [0.999, 1.0]])
        values, _ = refine(
            torch.tensor([[1.0, 1.0]]), torch.ones(1, 1), torch.tensor([[1.4, 1.4]]), H,
            Grid(bits=4, group_size=2), keep_mask=None, sweeps=0,
        )  # fmt: skip
        assert values.tolist() == [[1.0, 1.0]]
        values, _ = refine(
            torch.tensor([[1.0, 1.0]]), torch.ones(1, 1), torch.tensor([[1.4, 1.4]]), H,
            Grid(bits=4, group_size=2), keep_mask=None, sweeps=1,
        )  # fmt: skip
        assert abs(float(values.sum()) - 2.8) < 0.21


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(Exception, match="damping is 0"):
        GPTQConfig(damping=0)


class TestActOrder:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("bits", [3, 4])
    def test_the_strongest_columns_first_lose_less(self, bits: int, masked: bool) -> None:
        weight, data = problem(64, 256)
        power = torch.logspace(-1, 1, 256)[torch.randperm(256, generator=torch.manual_seed(0))]
        assert data.hessian is not None
        data = Statistics(columns=256, samples=400, hessian=data.hessian * power * power[:, None])
        mask = weight.abs() > 0.6 if masked else None
        wanted = weight if mask is None else weight * mask
        error = {
            order: data.output_error(
                wanted,
                torch.from_numpy(
                    GPTQConfig(act_order=order, refine_up_to=0)
                    .quantize(wanted, data, Grid(bits=bits, group_size=64), mask)
                    .decode()
                ),
            )
            for order in (True, False)
        }
        assert error[True] < 0.9 * error[False]

    def test_equal_power_keeps_the_order_and_scales_of_neighbours(self) -> None:
        # Uncorrelated inputs of equal power: nothing to repair, so both are rounding to nearest.
        weight, _ = problem(8, 96)
        data = Statistics(columns=96, samples=96, hessian=96 * torch.eye(96))
        grid = Grid(bits=4, group_size=32)
        nearest = QUANTIZERS.get("rtn").quantize(weight, data, grid, None)
        for order in (True, False):
            codes = GPTQConfig(act_order=order).quantize(weight, data, grid, None)
            assert np.array_equal(codes.values, nearest.values)
            assert np.array_equal(codes.scales, nearest.scales)

    def test_by_hand_the_stronger_of_two_columns_is_repaired_by_the_weaker(self) -> None:
        # Inputs (x, 10 x): 1.4 and 1.4 give 15.4 x. The second goes first: 1, which misses 4 x;
        # the first makes up for it as far as the grid goes: 1.4 + 4 = 5.4 → 5, in all 15 x.
        # Two columns on the grid, and of more power than both, settle the scale.
        x = torch.tensor([1.0, 10.0])
        H = torch.block_diag(torch.outer(x, x), 1e6 * torch.eye(2))
        data = Statistics(columns=4, samples=1, hessian=H)
        weight = torch.tensor([[1.4, 1.4, 7.0, -8.0]])
        codes = GPTQConfig(damping=1e-9).quantize(weight, data, Grid(bits=4, group_size=4), None)
        assert codes.scales.tolist() == [[1.0]]
        assert codes.values.tolist() == [[5, 1, 7, -8]]
