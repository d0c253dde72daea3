"""What every pruner in the registry promises, whatever its method."""

import pytest
import torch

from edgesparse.calibrate import Statistic, Statistics
from edgesparse.pattern import Pattern
from edgesparse.prune import PRUNERS, JointPruner, Pruned
from edgesparse.quantize.grid import Grid

BUILT_IN = ["magnitude", "wanda", "sparsegpt", "admm"]
PATTERNS = [
    Pattern(sparsity=0.5), Pattern(sparsity=0.7), Pattern(keep=2, of=4), Pattern(keep=2, of=8),
    Pattern(keep=5, of=12), Pattern(keep=16, of=64), Pattern(sparsity=0.5, block=(1, 16)),
    Pattern(sparsity=0.5, block=(4, 4)), Pattern(sparsity=0.5, block=(16, 1)),
]  # fmt: skip


def problem(rows: int, columns: int, samples: int = 256) -> tuple[torch.Tensor, Statistics]:
    """A weight and inputs whose columns are correlated and of unequal power."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    power = torch.rand(columns, generator=generator) * 3 + 0.1
    X = torch.randn(samples, columns, generator=generator) @ (torch.eye(columns) + mix) * power
    weight = torch.randn(rows, columns, generator=generator)
    return weight, Statistics(columns=columns, samples=samples, hessian=X.T @ X)


def prune(method: str, weight: torch.Tensor, statistics: Statistics, pattern: Pattern) -> Pruned:
    return PRUNERS.get(method).prune(weight, statistics, pattern)


def test_the_registry_has_the_methods_of_this_list() -> None:
    assert set(BUILT_IN) <= set(PRUNERS)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("shape", [(48, 192), (33, 70)], ids=str)
def test_a_mask_has_the_pattern_and_its_sparsity(
    method: str, pattern: Pattern, shape: tuple[int, int]
) -> None:
    weight, statistics = problem(*shape)
    pruned = prune(method, weight, statistics, pattern)
    keep, (rows, columns) = pruned.keep_mask, shape
    assert not pruned.weight[~keep].any()
    if pattern.n_of_m:
        n, m = pattern.n_of_m
        for start in range(0, columns, m):
            kept = keep[:, start : start + m].sum(1)
            assert (kept == min(n, columns - start)).all()
        return
    removed = 1 - float(keep.float().mean())
    competitors = {"wanda": pattern.block[0] * columns, "sparsegpt": rows * 64}
    slack = (
        pattern.block[0]
        * pattern.block[1]
        / min(competitors.get(method, rows * columns), rows * columns)
    )
    assert pattern.sparsity - slack - 1 / rows <= removed <= pattern.sparsity + 1e-9
    r, c = pattern.block
    for i in range(0, rows, r):
        for j in range(0, columns, c):
            block = keep[i : i + r, j : j + c]
            assert block.all() or not block.any()


@pytest.mark.parametrize("method", BUILT_IN)
def test_arguments_are_not_changed_and_results_repeat(method: str) -> None:
    weight, statistics = problem(16, 96)
    before, hessian = weight.clone(), statistics.second_moment().clone()
    first = prune(method, weight, statistics, Pattern(sparsity=0.6))
    second = prune(method, weight, statistics, Pattern(sparsity=0.6))
    assert torch.equal(weight, before)
    assert torch.equal(statistics.second_moment(), hessian)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.keep_mask, second.keep_mask)


@pytest.mark.parametrize("method", BUILT_IN)
def test_kept_weights_are_equal_unless_the_method_says_it_updates_them(method: str) -> None:
    weight, statistics = problem(16, 96)
    pruned = prune(method, weight, statistics, Pattern(sparsity=0.5))
    same = torch.equal(pruned.weight[pruned.keep_mask], weight[pruned.keep_mask])
    assert same != PRUNERS.get(method).updates


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_output_error_falls_from_the_fast_to_the_best_method(pattern: Pattern) -> None:
    weight, statistics = problem(64, 192)
    error = {
        method: statistics.output_error(weight, prune(method, weight, statistics, pattern).weight)
        for method in BUILT_IN
    }
    assert error["admm"] < error["sparsegpt"] < error["wanda"] < error["magnitude"]


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("pattern", [Pattern(sparsity=0.5), Pattern(keep=2, of=4)], ids=str)
class TestDegenerateInput:
    """Results are finite, on the pattern, and no worse than removing everything."""

    def check(self, method: str, pattern: Pattern, weight: torch.Tensor, H: torch.Tensor) -> Pruned:
        statistics = Statistics(columns=weight.shape[1], samples=1, hessian=H)
        pruned = prune(method, weight, statistics, pattern)
        assert torch.isfinite(pruned.weight).all()
        assert statistics.output_error(weight, pruned.weight) <= 1 + 1e-5
        return pruned

    def test_dead_channels_go_first(self, method: str, pattern: Pattern) -> None:
        weight, statistics = problem(8, 32)
        H = statistics.second_moment().clone()
        dead = torch.arange(0, 32, 2)
        H[dead], H[:, dead] = 0.0, 0.0
        pruned = self.check(method, pattern, weight, H)
        if method != "magnitude":
            assert not pruned.keep_mask[:, dead].any()

    def test_zero_rows_stay_zero(self, method: str, pattern: Pattern) -> None:
        weight, statistics = problem(8, 32)
        weight[3] = 0
        assert not self.check(method, pattern, weight, statistics.second_moment()).weight[3].any()

    def test_one_sample(self, method: str, pattern: Pattern) -> None:
        weight, _ = problem(8, 32)
        x = torch.linspace(-1, 1, 32)
        self.check(method, pattern, weight, torch.outer(x, x))

    def test_no_sample_at_all(self, method: str, pattern: Pattern) -> None:
        weight, _ = problem(8, 32)
        self.check(method, pattern, weight, torch.zeros(32, 32))

    def test_one_column(self, method: str, pattern: Pattern) -> None:
        self.check(method, pattern, torch.tensor([[1.0], [-2.0]]), torch.ones(1, 1))


def test_a_joint_pruner_makes_codes_on_its_own_mask() -> None:
    weight, statistics = problem(32, 160)
    joint = PRUNERS.get("sparsegpt")
    assert isinstance(joint, JointPruner)
    codes = joint.prune_to_codes(
        weight, statistics, Pattern(sparsity=0.5), Grid(bits=4, group_size=32)
    )
    alone = joint.prune(weight, statistics, Pattern(sparsity=0.5))  # type: ignore[attr-defined]
    decoded = torch.from_numpy(codes.decode())
    assert abs(codes.sparsity - 0.5) < 0.01
    assert statistics.output_error(weight, decoded) < 1.3 * statistics.output_error(
        weight, alone.weight
    )


@pytest.mark.parametrize("method", BUILT_IN)
def test_needs_are_statistics(method: str) -> None:
    assert all(isinstance(need, Statistic) for need in PRUNERS.get(method).needs)
