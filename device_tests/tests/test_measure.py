"""Errors by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from edgesparse_device.measure import measure, token_agreement, tokens_of


def test_one_example_by_hand():
    error = measure("y", np.array([[3.0, 0.0], [0.0, 5.0]]), np.array([[3.0, 4.0], [0.0, 5.0]]))
    assert error.max_abs == 4.0
    assert error.relative == pytest.approx(4 / math.sqrt(50))
    assert error.cosine == pytest.approx(34 / (math.sqrt(34) * math.sqrt(50)))
    assert error.top1 == 0.5


def test_equal_outputs_are_exactly_right():
    y = np.linspace(-1, 1, 30, dtype=np.float32).reshape(3, 10)
    error = measure("y", y, y.copy())
    assert (error.max_abs, error.relative, error.cosine, error.top1) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (np.array([1.0, np.inf]), np.array([1.0, 2.0])),
    ],
)
def test_other_shapes_and_values_that_are_no_numbers_are_infinitely_far(value, reference):
    assert measure("y", value, reference).relative == math.inf


def test_something_where_nothing_should_be():
    assert measure("y", np.ones(4), np.zeros(4)).relative == math.inf
    assert measure("y", np.zeros(4), np.zeros(4)).relative == 0.0
    assert measure("y", np.zeros(4), np.ones(4)).cosine == 0.0


@pytest.mark.parametrize("shape", [(1,), (5, 1), (0, 4), ()])
def test_no_agreement_where_there_is_nothing_to_choose(shape):
    assert measure("y", np.ones(shape), np.ones(shape)).top1 is None


def test_tokens():
    logits = np.zeros((1, 3, 5), np.float32)
    logits[0, [0, 1, 2], [4, 0, 2]] = 1
    assert tokens_of(logits) == (4, 0, 2)
    assert token_agreement((4, 0, 2), (4, 1, 2)) == pytest.approx(2 / 3)
    assert token_agreement((4, 0), (4, 0, 2)) == 0.0
    assert token_agreement((), ()) == 0.0
