"""Sparsity shared out over layers: the total stays, what matters more loses less."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgesparse
from edgesparse.errors import CalibrationError, RecipeError, UnknownName
from edgesparse.model import CapturedModel
from edgesparse.pattern import Pattern
from edgesparse.planner import Plan, plan, share_sparsity
from edgesparse.planner.curvature import Trace, squares, traces_of
from edgesparse.planner.owl import Outliers, blocks_of
from edgesparse.planner.sharing import ALLOCATIONS, MOST, same_total
from edgesparse.recipe import Recipe, Rule

BUILT_IN = ["owl", "hessian"]
DATA = [torch.randn(64, 128, generator=torch.Generator().manual_seed(3))]


class Unequal(nn.Module):
    """Blocks with a loud, a plain and a hardly heard layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(128, 128, bias=False) for _ in range(3))
        self.volumes = (10.0, 1.0, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [v * block(x) for v, block in zip(self.volumes, self.blocks, strict=True)]
        return torch.stack(parts).sum(0)


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    return edgesparse.load(Unequal().eval(), example_inputs={"x": torch.zeros(2, 128)})


def planned(captured: CapturedModel, pattern: Pattern, bits: int = 4) -> Plan:
    return plan(captured, Recipe((Rule(pattern=pattern, bits=bits, group_size=32),)))


def sparsities(of: Plan) -> dict[str, float]:
    return {e.tensor.name: e.rule.pattern.sparsity for e in of.tensors if e.rule is not None}


@pytest.mark.parametrize("pattern", [Pattern(sparsity=0.5), Pattern(sparsity=0.7, block=(16, 1))])
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_total_and_the_bytes_stay(captured: CapturedModel, name: str, pattern: Pattern) -> None:
    before = planned(captured, pattern, bits=16)
    after = share_sparsity(captured, before, DATA, name)
    found = sparsities(after)
    assert sum(found.values()) / 3 == pytest.approx(pattern.sparsity, abs=1e-5)
    assert after.nbytes == pytest.approx(before.nbytes, rel=0.01)
    assert f"sparsity shared out by {name}" in after.notes
    small = edgesparse.compress(captured, after, DATA)
    for tensor, packed in small.packed.items():
        assert packed.codes.sparsity == pytest.approx(found[tensor], abs=0.01)
    assert small.nbytes == pytest.approx(sum(e.nbytes for e in after.tensors), rel=0.01)


def test_the_hessian_gives_most_to_what_the_output_listens_to(captured: CapturedModel) -> None:
    found = sparsities(share_sparsity(captured, planned(captured, Pattern(sparsity=0.5)), DATA,
                                      "hessian"))  # fmt: skip
    assert list(found.values()) == pytest.approx([0.4, 0.5, 0.6], abs=1e-3)


@pytest.mark.parametrize("name", [*BUILT_IN, "uniform"])
def test_patterns_that_fix_their_sparsity_take_no_part(captured: CapturedModel, name: str) -> None:
    before = planned(captured, Pattern(keep=2, of=4))
    assert share_sparsity(captured, before, DATA, name).tensors == before.tensors
    dense = planned(captured, Pattern())
    assert share_sparsity(captured, dense, DATA, name).tensors == dense.tensors


def test_the_budget_still_holds(captured: CapturedModel) -> None:
    recipe = Recipe((Rule(pattern=Pattern(sparsity=0.5), bits=4, group_size=32),))
    limit = plan(captured, recipe).nbytes
    before = plan(captured, recipe, budget=edgesparse.Budget(file=limit))
    for name in BUILT_IN:
        after = share_sparsity(captured, before, DATA, name)
        assert after.nbytes <= limit


@given(
    st.lists(st.tuples(st.floats(0, 0.95), st.integers(1, 10**6)), min_size=1, max_size=12),
    st.floats(0.0, 0.9),
)
def test_the_same_total_within_bounds(layers: list[tuple[float, int]], share: float) -> None:
    wanted = {str(i): s for i, (s, _) in enumerate(layers)}
    sizes = {str(i): n for i, (_, n) in enumerate(layers)}
    found = same_total(wanted, sizes, share * sum(sizes.values()))
    assert all(0 <= s <= MOST for s in found.values())
    removed = sum(sizes[name] * s for name, s in found.items())
    assert removed == pytest.approx(share * sum(sizes.values()), rel=1e-6, abs=1e-6)


class TestOwl:
    def test_by_hand(self) -> None:
        # Mean 2, five times that is 10: one of ten is above it.
        scores = torch.tensor([11.0, 9.0, *[0.0] * 8])
        assert Outliers().outliers(scores) == pytest.approx(0.1)
        moved = Outliers(spread=0.1).spread_out({"a": 0.01, "b": 0.02, "c": 0.03})
        assert moved == pytest.approx({"a": 0.0, "b": 0.1, "c": 0.2})
        assert Outliers().spread_out({"a": 0.5, "b": 0.5}) == {"a": 0, "b": 0}

    def test_a_block_with_outliers_loses_less(self, captured: CapturedModel) -> None:
        weights = {name: value.clone() for name, value in captured.weights().items()}
        weights["blocks.1.weight"][:3] *= 30
        from dataclasses import replace

        spiky = replace(captured, weights=lambda: weights)
        found = sparsities(
            share_sparsity(spiky, planned(spiky, Pattern(sparsity=0.5)), DATA, "owl")
        )
        assert found["blocks.1.weight"] < 0.41
        assert found["blocks.0.weight"] == pytest.approx(found["blocks.2.weight"], abs=0.03)

    def test_blocks_are_children_of_the_outermost_list(self, captured: CapturedModel) -> None:
        blocks = blocks_of(captured, captured.tensors)
        assert list(blocks) == ["blocks.0", "blocks.1", "blocks.2"]
        nested = nn.Sequential(
            nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), nn.Linear(64, 8)
        )
        other = edgesparse.load(nested.eval(), example_inputs=torch.zeros(1, 64))
        assert {b: len(names) for b, names in blocks_of(other, other.tensors).items()} == {
            "0": 4, "1": 2,
        }  # fmt: skip


class TestHessian:
    def test_of_a_linear_layer_the_trace_is_known(self) -> None:
        # y = W x: the sum over outputs and weights of (dy/dw)² is outputs times |x|².
        model, x = nn.Linear(5, 3, bias=False), torch.tensor([[1.0, 2.0, 0.0, 0.0, 2.0]])
        traces = traces_of(model, ["weight"], [{"input": x}], labels=False, seed=0)
        assert traces["weight"] == pytest.approx(3 * 9.0, rel=1e-5)

    def test_of_a_classifier_the_mean_trace_is_known(self) -> None:
        # Logits W x with p = softmax: the Gauss-Newton trace is |x|² (1 - |p|²).
        class Head(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.out = nn.Linear(2, 4, bias=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.out(x)

        torch.manual_seed(0)
        head, x = Head(), torch.tensor([[[3.0, -1.0]]])
        draws = [
            traces_of(head, ["out.weight"], [{"x": x}], labels=True, seed=s) for s in range(400)
        ]
        p = head(x).softmax(-1).flatten().detach()
        wanted = 10 * float(1 - p.square().sum())
        mean: float = sum(of["out.weight"] for of in draws) / 400
        assert mean == pytest.approx(wanted, rel=0.15)

    def test_the_result_repeats_and_depends_on_no_global_state(
        self, captured: CapturedModel
    ) -> None:
        before = planned(captured, Pattern(sparsity=0.5))
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(sparsities(share_sparsity(captured, before, DATA, "hessian")))
        assert found[0] == found[1]

    def test_squares_of_blocks_are_their_means(self) -> None:
        weight = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
        assert squares(weight, Pattern(sparsity=0.5, block=(2, 1))).unique().tolist() == [5.0]
        curve = squares(weight, Pattern(sparsity=0.5))
        assert (curve[0], curve[-1]) == (1.0, 9.0)

    def test_a_gradient_that_is_not_finite_names_the_layer(self, captured: CapturedModel) -> None:
        with pytest.raises(CalibrationError, match=r"blocks\.0\.weight: the gradient is not"):
            share_sparsity(
                captured, planned(captured, Pattern(sparsity=0.5)),
                [torch.full((2, 128), torch.inf)], "hessian",
            )  # fmt: skip


def test_an_own_allocation_is_a_row(captured: CapturedModel) -> None:
    class Rising:
        def sparsities(self, captured: object, layers: list, *_: object) -> Mapping[str, float]:  # type: ignore[type-arg]
            return {entry.tensor.name: 0.2 * i for i, entry in enumerate(layers)}

    ALLOCATIONS.register("rising", Rising())
    found = sparsities(
        share_sparsity(captured, planned(captured, Pattern(sparsity=0.5)), DATA, "rising")
    )
    assert list(found.values()) == pytest.approx([0.3, 0.5, 0.7], abs=1e-5)


def test_what_cannot_be_is_refused(captured: CapturedModel) -> None:
    before = planned(captured, Pattern(sparsity=0.5))
    with pytest.raises(UnknownName, match="did you mean 'hessian'"):
        share_sparsity(captured, before, DATA, "hesian")
    with pytest.raises(RecipeError, match=r"spread 0\.7"):
        Outliers(spread=0.7)
    with pytest.raises(RecipeError, match="spread 0"):
        Trace(spread=0)
