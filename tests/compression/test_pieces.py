"""Large matrices by rows, and decoding on a device: the same numbers to the bit."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse import pieces
from edgesparse.calibrate import Statistics
from edgesparse.packed import FORMATS
from edgesparse.pattern import DENSE
from edgesparse.solve import solve_tensor

CPU = torch.device("cpu")
RTN = es.Rule(bits=4, group_size=16, quantizer="rtn")
SPEC = FORMATS.get("dense4").spec(group_size=16, pattern=DENSE)


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 33), (40, 48), (65, 100)])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 24])
def test_by_rows_the_same_is_chosen(rows: int, columns: int, at_once: int) -> None:
    W, statistics = weight(rows, columns), Statistics(columns=columns)
    whole = solve_tensor("w", W, statistics, RTN, SPEC)
    with patch.object(pieces, "AT_ONCE", at_once):
        parts = pieces.solve_by_rows("w", W, statistics, RTN, SPEC)
        placed = W.clone()
        error = pieces.put_in_place(parts, placed, statistics).relative
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.scales, parts.scales)
    assert np.array_equal(placed.numpy(), whole.decode())
    expected = float((placed - W).double().square().sum() / W.double().square().sum())
    assert error == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(
    "numbers", [{"scheme": "asymmetric"}, {"scheme": "table", "table_rows": 5}]
)
@pytest.mark.parametrize(("rows", "columns"), [(1, 20), (23, 33)])
def test_zeros_and_tables_are_those_of_their_rows(
    numbers: dict[str, object], rows: int, columns: int
) -> None:
    rule = replace(RTN, group_size=None if "table_rows" in numbers else 16, **numbers)  # type: ignore[arg-type]
    options = {"group_size": 0 if "table_rows" in numbers else 16, **numbers}
    spec = FORMATS.get("dense4").spec(pattern=DENSE, **options)  # type: ignore[arg-type]
    W, statistics = weight(rows, columns), Statistics(columns=columns)
    whole = solve_tensor("w", W, statistics, rule, spec)
    with patch.object(pieces, "AT_ONCE", 1):
        parts = pieces.solve_by_rows("w", W, statistics, rule, spec)
    assert np.array_equal(whole.decode(), parts.decode())
    for name in ("zeros", "table"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


WANDA = es.Rule(
    bits=4, group_size=16, quantizer="rtn", method="wanda", pattern=es.Pattern(sparsity=0.375)
)


@pytest.mark.parametrize("pattern", [WANDA.pattern, es.Pattern(keep=2, of=4)])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (7, 40), (65, 200)])
def test_pruned_by_rows_the_same_is_chosen(pattern: es.Pattern, rows: int, columns: int) -> None:
    rule = replace(WANDA, pattern=pattern)
    spec = FORMATS.get("bitmask4").spec(group_size=16, pattern=pattern)
    W = weight(rows, columns)
    statistics = Statistics(columns=columns, samples=3, square_sum=weight(1, columns)[0].square())
    whole = solve_tensor("w", W, statistics, rule, spec)
    with patch.object(pieces, "AT_ONCE", 1), patch.object(pieces, "solve_tensor") as solve:
        solve.side_effect = solve_tensor
        parts = pieces.solve_by_rows("w", W, statistics, rule, spec)
    assert solve.call_count == -(-rows // 16)
    for name in ("values", "scales", "keep_mask"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize("method", ["sparsegpt", "admm", "magnitude"])
def test_where_weights_compete_the_matrix_is_solved_whole(method: str) -> None:
    rule = replace(WANDA, method=method)
    spec = FORMATS.get("bitmask4").spec(group_size=16, pattern=rule.pattern)
    assert pieces.is_solved_by_rows(rule, spec, 64) is None


@pytest.mark.parametrize("columns", [1, 16, 33, 100])
def test_a_device_decodes_to_the_same_numbers(columns: int) -> None:
    codes = solve_tensor("w", weight(9, columns), Statistics(columns=columns), RTN, SPEC)
    found = pieces.decode_on(codes, slice(2, 9), CPU)
    assert np.array_equal(found.numpy(), codes.decode()[2:9])


@pytest.mark.gpu
def test_a_gpu_decodes_to_the_same_numbers() -> None:
    codes = solve_tensor("w", weight(64, 100), Statistics(columns=100), RTN, SPEC)
    found = pieces.decode_on(codes, slice(0, 64), torch.device("cuda"))
    assert np.array_equal(found.cpu().numpy(), codes.decode())


def test_the_error_of_a_costly_matrix_is_that_of_some_of_its_rows() -> None:
    W, statistics = weight(300, 64), Statistics(columns=64)
    codes = solve_tensor("w", W, statistics, RTN, SPEC)
    with patch.object(pieces, "_MEASURED_COST", 1), patch.object(pieces, "_MEASURED_ROWS", 100):
        error = pieces.put_in_place(codes, W.clone(), statistics).relative
    some = W[::3]
    expected = (torch.from_numpy(codes.decode())[::3] - some).square().sum() / some.square().sum()
    assert error == pytest.approx(float(expected), rel=1e-4)
