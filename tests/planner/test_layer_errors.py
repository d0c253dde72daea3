"""Errors of layers by candidate: real solvers, real inputs, each solved once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import edgesparse
from edgesparse.errors import CalibrationError
from edgesparse.model import CapturedModel, TensorKind
from edgesparse.pattern import Pattern
from edgesparse.planner import layer_errors
from edgesparse.planner.error_model import gaussian_error
from edgesparse.planner.layer_errors import Passes, describe, measure_layer_errors, measured_rates
from edgesparse.planner.rates import Rates
from edgesparse.planner.sensitivity import round_off, take_away
from edgesparse.recipe import Rule

DATA = [torch.randn(64, 64, generator=torch.Generator().manual_seed(3))]
HALF = Pattern(sparsity=0.5)
RULES = [
    Rule(bits=b, group_size=32, pattern=p, method="sparsegpt")
    for b in (16, 4, 2)
    for p in (Pattern(), HALF, Pattern(keep=2, of=4))
]


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()
    return edgesparse.load(model, example_inputs=torch.zeros(1, 64))


def test_it_is_the_error_compress_would_make(captured: CapturedModel) -> None:
    rule = Rule(name="0.weight", bits=3, group_size=32, quantizer="gptq")
    plan = edgesparse.plan(captured, edgesparse.Recipe((rule,)))
    found = measure_layer_errors(captured, [rule], DATA)
    assert found["0.weight"][rule] == edgesparse.compress(captured, plan, DATA).errors["0.weight"]
    assert found["2.weight"] == {}


def test_more_is_lost_with_fewer_bits_and_less_freedom(captured: CapturedModel) -> None:
    found = measure_layer_errors(captured, RULES, DATA)
    for of in found.values():
        by = {(rule.bits, str(rule.pattern), rule.pattern.sparsity): e for rule, e in of.items()}
        assert by[16, "unstructured", 0] == 0
        assert 0 < by[4, "unstructured", 0] < by[2, "unstructured", 0]
        for pattern in ("unstructured", "2:4"):
            assert 0 < by[16, pattern, 0.5] < by[4, pattern, 0.5] < by[2, pattern, 0.5]


def test_a_candidate_is_solved_once(
    captured: CapturedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure_layer_errors(captured, RULES[:2], DATA, Passes(cache=tmp_path))
    solved = []
    original = layer_errors.solve_tensor

    def counting(name: str, *rest: object) -> object:
        solved.append(name)
        return original(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(layer_errors, "solve_tensor", counting)
    assert measure_layer_errors(captured, RULES[:2], DATA, Passes(cache=tmp_path)) == first
    assert solved == []
    more = measure_layer_errors(captured, RULES[:5], DATA, Passes(cache=tmp_path))
    assert sorted(set(solved)) == ["0.weight", "2.weight"]
    assert len(solved) == 2 * 3
    assert all(more[name][rule] == e for name, of in first.items() for rule, e in of.items())


def test_other_options_of_a_method_are_another_candidate() -> None:
    names = {describe(rule) for rule in RULES}
    assert len(names) == len(RULES)
    assert "damping=0.01" in describe(RULES[-1])


def test_only_what_a_rule_matches_is_measured(captured: CapturedModel) -> None:
    seen: list[tuple[int, int]] = []
    rule = Rule(kind=TensorKind.EMBEDDING, bits=4)
    assert measure_layer_errors(captured, [rule], DATA) == {"0.weight": {}, "2.weight": {}}
    both = Rule(kind=TensorKind.LINEAR, bits=4, group_size=32, quantizer="rtn")
    measure_layer_errors(captured, [both], DATA, Passes(progress=lambda *step: seen.append(step)))
    assert seen == [(1, 2), (2, 2)]


def test_bad_inputs_are_named(captured: CapturedModel) -> None:
    with pytest.raises(CalibrationError, match=r"0: the inputs are NaN or infinite"):
        measure_layer_errors(captured, RULES[:1], [torch.full((2, 64), torch.nan)])


def test_the_planner_weighs_what_was_measured(captured: CapturedModel, tmp_path: Path) -> None:
    open_rule = Rule(method="sparsegpt", adjustable=frozenset({"bits", "sparsity"}), group_size=32)
    recipe = edgesparse.Recipe((open_rule,))
    alike = {t.name: Rates(rounding=1.0, pruning=3.0) for t in captured.tensors if t.compressible}
    rates = measured_rates(captured, recipe, alike, DATA, Passes(cache=tmp_path))
    plan = edgesparse.plan(
        captured, recipe, budget=edgesparse.Budget(file="6kB"), sensitivity=rates
    )
    small = edgesparse.compress(captured, plan, DATA)
    first = next(e for e in plan.tensors if e.tensor.name == "0.weight")
    # Nothing is compressed before the first layer: what was measured is what compress finds.
    predicted = rates["0.weight"].loss(first.spec)
    assert predicted == pytest.approx(rates["0.weight"].output * small.errors["0.weight"], rel=1e-5)
    assert measured_rates(captured, recipe, alike, DATA, Passes(cache=tmp_path)) == rates


def test_the_rate_of_an_output_error_explains_the_damages(captured: CapturedModel) -> None:
    tensor = next(t for t in captured.tensors if t.name == "0.weight")
    alike = {"0.weight": Rates(rounding=2.0, pruning=2.0)}
    recipe = edgesparse.Recipe((Rule(name="0.weight", bits=4, group_size=32),))
    rates = measured_rates(captured, recipe, alike, DATA)["0.weight"]
    weight, X = captured.weights()[tensor.name].float(), DATA[0]
    errors = [
        float(((X @ (damage(weight) - weight).T) ** 2).sum() / ((X @ weight.T) ** 2).sum())
        for damage in (round_off, take_away)
    ]
    losses = 2.0 * gaussian_error(3, 128, Pattern()) + 2.0 * gaussian_error(16, 0, HALF)
    assert rates.output == pytest.approx(losses / sum(errors), rel=1e-4)
