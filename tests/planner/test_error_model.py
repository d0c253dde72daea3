"""The Gaussian error model against what theory and counting say."""

import itertools

import numpy as np
import pytest

from edgesparse.pattern import Pattern
from edgesparse.planner.error_model import gaussian_error


def test_nothing_done_loses_nothing():
    assert gaussian_error(16, 0, Pattern()) == 0.0


def test_pruning_half_loses_what_the_normal_distribution_says():
    # E[x²; |x| < median] of a standard normal variable: 1/2 - 2·m·φ(m), m = 0.67449.
    m = 0.6744897501960817
    expected = 0.5 - 2 * m * np.exp(-m * m / 2) / np.sqrt(2 * np.pi)
    found = gaussian_error(16, 0, Pattern(sparsity=0.5))
    assert found == pytest.approx(expected, rel=0.02)


def test_one_bit_more_is_about_four_times_better():
    errors = [gaussian_error(bits, 128, Pattern()) for bits in (2, 3, 4)]
    for worse, better in itertools.pairwise(errors):
        assert 3 < worse / better < 5


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_more_sparsity_and_larger_groups_lose_more(bits):
    by_sparsity = [gaussian_error(bits, 64, Pattern(sparsity=s)) for s in (0, 0.25, 0.5, 0.75)]
    assert by_sparsity == sorted(by_sparsity)
    by_group = [gaussian_error(bits, group, Pattern()) for group in (32, 64, 128, 256)]
    assert by_group == sorted(by_group)


def test_freedom_helps():
    free = gaussian_error(16, 0, Pattern(sparsity=0.5))
    two_of_four = gaussian_error(16, 0, Pattern(keep=2, of=4))
    blocks = gaussian_error(16, 0, Pattern(sparsity=0.5, block=(16, 1)))
    assert free < two_of_four < blocks < 0.5


@pytest.mark.parametrize("pattern", [Pattern(keep=3, of=7), Pattern(sparsity=0.3, block=(5, 3))])
@pytest.mark.parametrize("group_size", [8, 40, 4096])
def test_sizes_that_do_not_divide(pattern, group_size):
    assert 0 < gaussian_error(4, group_size, pattern) < 1
