"""The search of scales: the compiled loop against NumPy in float64, and what it may be given."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_kernels import scales as module
from edgesparse_kernels.scales import least_error


def trials(rows: int, columns: int, tried: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Weights, scales, zeros and importance of these sizes."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < 0.7)).astype(
        "f4"
    )
    scales = (rng.random((rows, tried)) * 0.5 + 0.05).astype("f4")
    zeros = rng.integers(-4, 4, (rows, tried)).astype("f4")
    return weight, scales, zeros, rng.random(columns).astype("f4")


def costs(weight, scales, zeros, importance, lowest, highest) -> np.ndarray:
    """The error of every trial in float64, [N, S]."""
    w, s, z = weight[:, None, :].astype("f8"), scales[:, :, None], zeros[:, :, None]
    codes = np.clip(np.rint(weight[:, None, :] / s) + z, lowest, highest)
    return (((codes - z) * s.astype("f8") - w) ** 2 * importance).sum(2)


def test_by_hand_the_scale_that_meets_every_weight_is_taken() -> None:
    weight = np.array([[0.5, -1.0, 1.5], [3.0, -9.0, 6.0]], np.float32)
    tried = np.array([[0.4, 0.5, 0.7], [2.0, 1.0, 3.0]], np.float32)
    assert least_error(weight, tried, None, None, lowest=-8, highest=7).tolist() == [1, 2]


def test_of_equal_trials_the_first_is_taken() -> None:
    weight, tried = np.ones((1, 4), np.float32), np.full((1, 3), 0.5, np.float32)
    assert least_error(weight, tried, None, None, lowest=-8, highest=7).tolist() == [0]


def test_zeros_move_the_range() -> None:
    weight = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    tried, zeros = np.ones((1, 3), np.float32), np.array([[0, -1, -2]], np.float32)
    assert least_error(weight, tried, zeros, None, lowest=-2, highest=1).tolist() == [2]


def test_importance_decides_between_two_weights() -> None:
    weight, tried = np.array([[1.0, 1.4]], np.float32), np.array([[1.0, 1.4]], np.float32)
    for importance, best in (([1.0, 0.1], 0), ([0.1, 1.0], 1)):
        found = least_error(
            weight, tried, None, np.array(importance, np.float32), lowest=-1, highest=1
        )
        assert found.tolist() == [best]


@pytest.mark.parametrize("columns", [1, 3, 16, 128, 200])
@pytest.mark.parametrize("tried", [1, 15, 16, 31, 124])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_trial_is_better_than_the_one_chosen(columns: int, tried: int, bits: int) -> None:
    given = trials(9, columns, tried)
    limits = -(1 << bits - 1), (1 << bits - 1) - 1
    found = least_error(*given, lowest=limits[0], highest=limits[1])
    cost = costs(*given, *limits)
    assert (cost[np.arange(9), found] <= cost.min(1) * (1 + 1e-5)).all()


def test_threads_views_and_numpy_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_A_THREAD", 64)
    weight, *rest = trials(37, 64, 31)
    wanted = least_error(weight, *rest, lowest=-8, highest=7)
    wide = np.concatenate([weight, weight], 1)
    wide.flags.writeable = False
    for same, threads in ((weight, 5), (wide[:, :64], 1), (wide[:, 64:], 2)):
        assert (least_error(same, *rest, lowest=-8, highest=7, threads=threads) == wanted).all()
    monkeypatch.setattr(module, "is_enabled", lambda: False)
    assert (least_error(weight, *rest, lowest=-8, highest=7) == wanted).all()


def test_no_rows_and_far_weights() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert least_error(empty, empty, None, None, lowest=-8, highest=7).shape == (0,)
    weight, tried = np.array([[1e30]], np.float32), np.array([[1e-8, 1.0, 2.0]], np.float32)
    assert least_error(weight, tried, None, None, lowest=-8, highest=7).tolist() == [0]
