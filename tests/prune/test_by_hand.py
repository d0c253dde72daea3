"""One example of each method worked out by hand, and an independent solution to compare with."""

import itertools

import pytest
import torch

from edgesparse.calibrate import Statistics
from edgesparse.calibrate.factor import factorize
from edgesparse.pattern import Pattern
from edgesparse.prune.admm import ADMM, refit
from edgesparse.prune.magnitude import MAGNITUDE
from edgesparse.prune.masks import block_means, keep_highest, keep_highest_by_row
from edgesparse.prune.obs import sweep
from edgesparse.prune.sparsegpt import SPARSEGPT
from edgesparse.prune.wanda import WANDA

HALF = Pattern(sparsity=0.5)


def statistics(*norms: float) -> Statistics:
    """Uncorrelated inputs with these column norms."""
    return Statistics(columns=len(norms), samples=1, hessian=torch.tensor(norms).square().diag())


def test_magnitude_removes_the_smallest_of_the_whole_layer() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    pruned = MAGNITUDE.prune(weight, statistics(1.0, 1.0), HALF)
    assert pruned.weight.tolist() == [[0.0, 0.0], [3.0, -4.0]]


def test_wanda_weighs_by_the_input_norm_within_each_row() -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    pruned = WANDA.prune(weight, statistics(10.0, 1.0), HALF)
    assert pruned.weight.tolist() == [[1.0, 0.0], [3.0, 0.0]]


def test_sparsegpt_moves_a_removed_weight_onto_its_correlated_neighbour() -> None:
    # X has two columns, the second twice the first: w0 x0 + w1 x1 = (w0 + 2 w1) x0. Removing w0 = 1
    # costs less than removing w1, and w1 takes it up as 1 + 1/2 (nearly: H is damped).
    x = torch.tensor([1.0, 2.0])
    found = SPARSEGPT.prune(
        torch.tensor([[1.0, 1.0]]),
        Statistics(columns=2, samples=1, hessian=torch.outer(x, x)),
        HALF,
    )
    assert found.weight[0, 0] == 0
    assert found.weight[0, 1] == pytest.approx(1.5, abs=0.01)


def test_a_sweep_with_everything_removed_but_the_last_column_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(64, 5, generator=generator)
    weight = torch.randn(3, 5, generator=generator)
    mask = torch.tensor([[False, False, False, False, True]]).expand(3, 5)
    swept = sweep(weight, factorize(X.T @ X, 1e-9), keep_mask=mask)
    wanted = (X @ weight.T * X[:, 4:]).sum(0) / X[:, 4].square().sum()
    assert torch.allclose(swept.weight[:, 4], wanted, atol=1e-4)


def test_refit_is_least_squares_on_each_rows_own_support() -> None:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(200, 24, generator=generator)
    weight = torch.randn(7, 24, generator=generator)
    mask = torch.rand(7, 24, generator=generator) < 0.4
    found = refit(weight * mask, weight, X.T @ X, mask, steps=60)
    for row in range(7):
        columns = mask[row]
        wanted = torch.linalg.lstsq(X[:, columns], X @ weight[row]).solution
        assert torch.allclose(found[row, columns], wanted, atol=1e-4)
        assert not found[row, ~columns].any()


def test_admm_finds_the_best_mask_of_a_row_that_can_be_enumerated() -> None:
    best_found = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(100, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
        weight = torch.randn(1, 8, generator=generator)
        data = Statistics(columns=8, samples=100, hessian=X.T @ X)
        errors = []
        for kept in itertools.combinations(range(8), 4):
            mask = torch.zeros(1, 8, dtype=torch.bool)
            mask[0, list(kept)] = True
            exact = torch.linalg.lstsq(X[:, mask[0]], X @ weight[0]).solution
            errors.append(data.output_error(weight, torch.zeros(1, 8).masked_scatter(mask, exact)))
        found = data.output_error(weight, ADMM(damping=1e-6).prune(weight, data, HALF).weight)
        assert found >= min(errors) - 1e-4
        best_found += found <= sorted(errors)[6] + 1e-4  # among the best tenth of 70 masks
    assert best_found >= 14


class TestMasks:
    def test_equal_scores_are_decided_by_position_and_counted_exactly(self) -> None:
        keep = keep_highest(torch.zeros(3, 5), HALF)
        assert keep.flatten().tolist() == [False] * 7 + [True] * 8

    def test_the_last_short_group_of_n_of_m_keeps_at_most_n(self) -> None:
        keep = keep_highest(torch.arange(7.0)[None], Pattern(keep=2, of=4))
        assert keep.tolist() == [[False, False, True, True, False, True, True]]

    def test_blocks_compete_by_their_mean_so_that_short_ones_are_not_disadvantaged(self) -> None:
        scores = torch.tensor([[1.0, 1.0, 1.5]])
        means, sizes = block_means(scores, (1, 2))
        assert means.tolist() == [[1.0, 1.5]]
        assert sizes.tolist() == [[2.0, 1.0]]
        assert keep_highest(scores, Pattern(sparsity=0.7, block=(1, 2))).tolist() == [
            [False, False, True]
        ]

    def test_a_block_that_would_exceed_the_sparsity_stays(self) -> None:
        assert keep_highest(torch.ones(1, 3), Pattern(sparsity=0.5, block=(1, 2))).all()

    def test_by_row_every_row_loses_the_same_number(self) -> None:
        scores = torch.arange(12.0).reshape(3, 4)
        assert keep_highest_by_row(scores, HALF).sum(1).tolist() == [2, 2, 2]

    def test_by_row_what_a_row_could_not_lose_the_next_one_does(self) -> None:
        scores = torch.arange(16.0).reshape(4, 4)
        kept = keep_highest_by_row(scores, Pattern(sparsity=0.375))  # 1.5 of 4 weights
        assert kept.sum(1).tolist() == [3, 2, 3, 2]
        assert kept[1].tolist() == [False, False, True, True]

    def test_by_row_blocks_add_up_to_the_sparsity_of_the_matrix(self) -> None:
        scores = torch.arange(40.0).reshape(4, 10)
        kept = keep_highest_by_row(scores, Pattern(sparsity=0.3, block=(1, 2)))  # 1.5 of 5 blocks
        assert kept.sum(1).tolist() == [8, 6, 8, 6]
