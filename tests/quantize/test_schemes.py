"""Asymmetric grids and tables: what every built-in quantizer finds on them, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.calibrate import Statistics
from edgesparse.errors import RecipeError
from edgesparse.packed import Codes
from edgesparse.prune.admm import damped
from edgesparse.quantize import QUANTIZERS, require_scheme
from edgesparse.quantize.grid import Grid
from edgesparse.quantize.refine import refine
from edgesparse.quantize.shifted import ShiftedGrid
from edgesparse.quantize.table import TableGrid, cluster

COLUMNS = 150
GRIDS = [
    *(ShiftedGrid(bits=b, group_size=g) for b in (2, 3, 4, 8) for g in (48, 256)),
    *(TableGrid(bits=b, group_size=COLUMNS, table_rows=r) for b in (2, 3, 4) for r in (0, 7)),
]


def problem(rows: int, columns: int = COLUMNS) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = torch.randn(400, columns, generator=generator) @ (torch.eye(columns) + mix)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, Statistics(columns=columns, samples=400, hessian=X.T @ X)


def quantize(
    method: str, weight: torch.Tensor, data: Statistics, grid: Grid, mask: torch.Tensor | None
) -> Codes:
    return QUANTIZERS.get(method).quantize(weight, data, grid, mask)


def error(codes: Codes, weight: torch.Tensor, data: Statistics) -> float:
    return data.output_error(weight, torch.from_numpy(codes.decode()))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("masked", [False, True])
def test_codes_are_of_the_grid_and_on_the_mask(method: str, grid: Grid, masked: bool) -> None:
    weight, data = problem(24)
    mask = weight.abs() > 0.6 if masked else None
    codes = quantize(method, weight, data, grid, mask)
    keep = np.ones((24, COLUMNS), bool) if mask is None else mask.numpy()
    assert np.array_equal(codes.keep_mask, keep)
    if isinstance(grid, TableGrid):
        assert codes.scheme == "table"
        assert codes.table is not None
        assert codes.table.shape == (
            -(-24 // grid.table_rows) if grid.table_rows else 1,
            2**grid.bits,
        )
        assert (np.diff(codes.table.astype(np.float32)) >= 0).all()
    else:
        assert (codes.scheme, codes.group_size) == ("asymmetric", grid.group_size)
    again = quantize(method, weight, data, grid, mask)
    assert np.array_equal(codes.values, again.values)
    if grid.bits < 8:  # the same number in float16 and in float32
        decoded = codes.decode()
        assert np.array_equal(decoded.astype(np.float16).astype(np.float32), decoded)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_leave_room_for_the_difference_of_two_codes(bits: int) -> None:
    weight, data = problem(16)
    scales = quantize("rtn", weight, data, ShiftedGrid(bits=bits, group_size=32), None).scales
    mantissa, _ = np.frexp(scales.astype(np.float64))
    kept = 7 if bits == 4 else 8
    assert np.array_equal(mantissa * 2**kept, np.round(mantissa * 2**kept))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_zeros_lower_the_error_and_so_does_compensation(bits: int, masked: bool) -> None:
    weight, data = problem(48)
    mask = weight.abs() > 0.67 if masked else None
    found = {
        (method, kind): error(
            quantize(method, weight, data, kind(bits=bits, group_size=48), mask), weight, data
        )
        for method in ("rtn", "gptq")
        for kind in (Grid, ShiftedGrid)
    }
    assert found["gptq", ShiftedGrid] < found["gptq", Grid]
    assert found["rtn", ShiftedGrid] < found["rtn", Grid]
    assert found["gptq", ShiftedGrid] < found["rtn", ShiftedGrid]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("table_rows", [0, 8])
def test_compensation_lowers_the_error_of_tables(bits: int, table_rows: int) -> None:
    weight, data = problem(48)
    grid = TableGrid(bits=bits, group_size=COLUMNS, table_rows=table_rows)
    plain = quantize("rtn", weight, data, grid, None)
    repaired = quantize("gptq", weight, data, grid, None)
    assert error(repaired, weight, data) < error(plain, weight, data)


def test_a_skewed_group_is_found_without_error() -> None:
    # 0 to 15 halves: fifteen steps above zero, none below, which no symmetric grid has.
    weight = torch.arange(16.0)[None] / 2
    grid = ShiftedGrid(bits=4, group_size=16)
    steps = grid.search(weight)
    assert steps.tolist() == [[[0.5, -8.0]]]
    assert torch.equal(grid.round(weight, steps), weight)
    codes = grid.as_codes(weight, steps, None)
    assert codes.values.tolist() == [list(range(-8, 8))]


@pytest.mark.parametrize("kind", [ShiftedGrid, TableGrid])
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4, 33), torch.ones(1, 1), torch.full((2, 20), 1e-9), torch.full((2, 20), 3e4)],
    ids=["zeros", "one", "tiny", "huge"],
)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_degenerate_weights_have_finite_codes(kind, weight: torch.Tensor, method: str) -> None:
    columns = weight.shape[1]
    data = Statistics(columns=columns, samples=1, hessian=torch.ones(columns, columns))
    grid = kind(bits=3, group_size=16 if kind is ShiftedGrid else columns)
    decoded = quantize(method, weight, data, grid, None).decode()
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded, weight.numpy(), rtol=0.15, atol=1e-7)
    nothing = quantize(method, weight, data, grid, torch.zeros_like(weight, dtype=torch.bool))
    assert not nothing.decode().any()


class TestClusters:
    def test_by_hand_means_of_what_is_nearest(self) -> None:
        values = torch.tensor([[0.0, 1.0, 10.0], [11.0, 10.5, 0.5]])
        assert cluster(values, torch.ones(2, 3), 2).tolist() == [0.5, 10.5]

    def test_by_hand_counts_pull_the_means(self) -> None:
        values = torch.tensor([0.0, 1.0, 10.0])
        assert cluster(values, torch.tensor([3.0, 1.0, 1.0]), 2).tolist() == [0.25, 10.0]

    def test_what_counts_nothing_is_not_there(self) -> None:
        values = torch.tensor([0.0, 1.0, 99.0])
        assert cluster(values, torch.tensor([1.0, 1.0, 0.0]), 2).tolist() == [0.0, 1.0]

    def test_few_values_are_their_own_entries(self) -> None:
        values = torch.tensor([-2.0, 0.5, 3.0]).repeat(50)
        entries = cluster(values, torch.ones(150), 8)
        assert {-2.0, 0.5, 3.0} <= set(entries.tolist())

    @pytest.mark.parametrize("size", [4, 8, 16])
    def test_no_entry_can_move_to_a_better_place(self, size: int) -> None:
        """Close to the known least error of a normal distribution (Max 1960)."""
        values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
        entries = cluster(values, torch.ones_like(values), size)
        found = (values[:, None] - entries).square().amin(1).mean()
        assert float(found) == pytest.approx({4: 0.1175, 8: 0.03454, 16: 0.009497}[size], rel=0.02)


@pytest.mark.parametrize("grid", [GRIDS[2], GRIDS[-3]], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_every_round_of_refinement_lowers_the_error(grid: Grid, masked: bool) -> None:
    weight, data = problem(16)
    mask = weight.abs() > 0.6 if masked else torch.ones_like(weight, dtype=torch.bool)
    H = damped(data.second_moment(), 0.01)
    if isinstance(grid, TableGrid):
        steps = grid.search_tables(weight, None, mask)
    else:
        steps = grid.search(weight * mask)
    values = grid.round(weight, steps) * mask
    errors = []
    for sweeps in range(3):
        q, s = refine(values, steps, weight, H, grid, keep_mask=mask, sweeps=sweeps)
        assert not q[~mask].any()
        assert torch.equal(grid.round(q, s) * mask, q)
        gap = q - weight
        errors.append(float(((gap @ H) * gap).sum()))
    assert errors[0] > errors[1] > errors[2]


def test_a_quantizer_of_symmetric_codes_is_not_asked_for_others() -> None:
    class Plain:
        needs = frozenset()

    QUANTIZERS.register("plain-for-this-test", Plain())
    require_scheme("plain-for-this-test", "symmetric")
    with pytest.raises(RecipeError, match="finds no table codes, only symmetric"):
        require_scheme("plain-for-this-test", "table")
    model = es.load(torch.nn.Linear(64, 64), example_inputs=torch.zeros(1, 64))
    rule = es.Rule(bits=4, scheme="table", quantizer="plain-for-this-test")
    with pytest.raises(RecipeError, match="finds no table"):
        es.plan(model, es.Recipe((rule,)))
