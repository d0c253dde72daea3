"""How outputs are judged: rows that a rounding tie reached, and rows that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_converters.executorch.rows import compare_rows
from numpy.typing import NDArray

RNG = np.random.default_rng(0)
REFERENCE = RNG.standard_normal((2, 8, 64)).astype(np.float32)
EXACT = REFERENCE + 0.01 * RNG.standard_normal(REFERENCE.shape).astype(np.float32)


def verdict(found: NDArray[np.float32]) -> list[bool]:
    checks, _ = compare_rows("y", found, REFERENCE, EXACT)
    return [check.ok for check in checks]


def test_equal() -> None:
    assert verdict(REFERENCE.copy()) == [True, True]


def test_a_row_after_a_tie_is_as_far_as_the_rounding() -> None:
    found = REFERENCE.copy()
    found[0, 5:] += 0.01
    assert verdict(found) == [True, True]
    assert "13 of 16 rows untouched" in compare_rows("y", found, REFERENCE, EXACT)[1]


def test_a_wrong_row_is_further_than_the_rounding() -> None:
    found = REFERENCE.copy()
    found[1, 3] *= 2
    assert verdict(found) == [True, False]


def test_every_row_a_little_wrong_is_no_tie() -> None:
    """A scale that is wrong by one percent: within the rounding, but no row agrees."""
    assert verdict(REFERENCE * np.float32(1.01)) == [False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    found = REFERENCE.copy()
    found[0, 0, 0] = value
    assert verdict(found) == [False]


def test_another_shape() -> None:
    assert verdict(REFERENCE[:1]) == [False]


def test_without_rounding_nothing_is_allowed() -> None:
    checks, _ = compare_rows("y", REFERENCE * np.float32(1.002), REFERENCE, REFERENCE)
    assert [check.ok for check in checks] == [False, False]
