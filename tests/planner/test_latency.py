"""Whose products a limit on latency counts: those of the target's runtime where it can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

import edgesparse as es
from edgesparse.budget import Budget
from edgesparse.errors import BudgetExceeded, MissingDependency
from edgesparse.exporters import EXPORTERS, Paced
from edgesparse.model import CapturedModel
from edgesparse.packed import FORMATS
from edgesparse.pattern import DENSE
from edgesparse.planner import plan, speed, with_patterns
from edgesparse.planner.candidates import possible
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.report.tables import plan_totals

transformers = pytest.importorskip("transformers")

DENSE_FASTEST = {"dense4": 1.0}
PAIRS_FASTEST = {"nm4": 1.0}
OTHERS = 8.0  # nanoseconds a weight


class Runtime:
    """A target whose runtime multiplies with one format faster than with all others."""

    suffix, extra = ".fast", "fast"
    accepts = frozenset({"dense4", "dense8", "nm4", "bitmask4"})
    packages: tuple[str, ...] = ()

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates, self.calls = rates, 0

    def product_rates(self, entries: Sequence[TensorPlan]) -> list[float]:
        self.calls += 1
        return [self.rates.get(entry.spec.name if entry.spec else "", OTHERS) for entry in entries]

    def predict_nbytes(self, made: Plan) -> int:
        return sum(entry.nbytes for entry in made.tensors)

    def _unused(self) -> None:
        raise AssertionError

    export = validate = inspect = run = _unused


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch):
    def add(runtime: Runtime) -> Runtime:
        monkeypatch.setitem(EXPORTERS._loaded, "fast", runtime)
        return runtime

    return add


@pytest.fixture(scope="module")
def llama(random_llama: Callable[..., CapturedModel]) -> CapturedModel:
    return random_llama(tied=False)


@pytest.fixture
def own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_packed_rate", lambda spec, rule: 0.5)
    monkeypatch.setattr(speed, "_float_rate", lambda: 2.0)


def _linears(made: Plan) -> list[TensorPlan]:
    return [entry for entry in made.tensors if entry.tensor.kind == "linear"]


def _formats(made: Plan) -> set[str]:
    return {entry.spec.name for entry in _linears(made) if entry.spec}


def test_the_choice_follows_the_runtime(llama, register) -> None:
    """The same model, budget and rules: only what the runtime is fast at differs."""
    weights = sum(t.numel for t in llama.tensors if t.kind == "linear")
    budget, recipe = Budget(latency=2 * weights), with_patterns(None)
    chosen = []
    for rates in (DENSE_FASTEST, PAIRS_FASTEST):
        register(Runtime(rates))
        made = plan(llama, recipe, budget=budget, target="fast")
        assert made.latency_ns <= budget.latency
        chosen.append(_formats(made))
    assert "dense4" in chosen[0]
    assert "nm4" not in chosen[0]
    assert "nm4" in chosen[1]
    assert "dense4" not in chosen[1]


def test_layers_are_chosen_one_by_one(llama, register) -> None:
    """Within a limit between all of one kind and all of another, both are used."""
    weights = sum(t.numel for t in llama.tensors if t.kind == "linear")
    register(Runtime({"dense4": 1.0, "dense8": 2.0}))
    made = plan(llama, budget=Budget(latency=3 * weights // 2), target="fast")
    assert _formats(made) >= {"dense4", "dense8"}


def test_the_sum_is_that_of_the_rates(llama, register) -> None:
    runtime = register(Runtime(DENSE_FASTEST))
    recipe = es.Recipe((es.Rule(kind="linear", bits=4, group_size=32, quantizer="rtn"),))
    made = plan(llama, recipe, budget=Budget(latency="1s"), target="fast")
    assert made.latency_ns == sum(entry.tensor.numel for entry in _linears(made))
    assert runtime.calls == 2  # all candidates at once, then what was chosen


def test_a_plan_says_whose_products_were_timed(llama, register, own_rates) -> None:
    register(Runtime(DENSE_FASTEST))
    limit = Budget(latency="1s")
    timed = plan(llama, budget=limit, target="fast")
    own = plan(llama, budget=limit)
    assert (timed.latency_of, own.latency_of) == ("fast", "edgesparse")
    assert timed.notes == own.notes == ()
    assert "products of one token by fast, here" in str(timed)
    assert "products of one token by edgesparse, here" in str(own)
    label = list(plan_totals(timed).columns[0].cells)
    assert "products of one token by fast, here" in label
    assert Plan.from_json(timed.to_json()) == timed
    assert plan(llama, budget=Budget(file="10MB")).latency_of is None


def test_a_plan_from_before_it_was_said_can_be_read(llama, own_rates) -> None:
    made = plan(llama, budget=Budget(latency="1s"))
    old = made.to_json()
    del old["latency_of"]
    assert Plan.from_json(old) == replace(made, latency_of=None)
    assert "products of one token, here" in str(replace(made, latency_of=None))


def test_a_refusal_says_whose_products_were_timed(llama, register) -> None:
    register(Runtime(DENSE_FASTEST))
    with pytest.raises(BudgetExceeded, match="with products by fast, here"):
        plan(llama, budget=Budget(latency="1us"), target="fast")


def test_a_runtime_that_is_not_installed_is_never_replaced(llama, register, own_rates) -> None:
    runtime = register(Runtime(DENSE_FASTEST))
    runtime.packages = ("no_such_package",)
    with pytest.raises(MissingDependency, match="the target fast needs the package"):
        plan(llama, budget=Budget(latency="1s"), target="fast")


@pytest.mark.parametrize("target", list(EXPORTERS))
def test_every_target_is_timed_or_says_that_it_is_not(target, llama, own_rates, monkeypatch):
    row = EXPORTERS.get(target)
    if isinstance(row, Paced):
        monkeypatch.setattr(row, "product_rates", lambda entries: [1.0] * len(entries))
    made = plan(llama, budget=Budget(latency="1s"), target=target)
    if isinstance(row, Paced):
        assert made.latency_of == target
        assert not made.notes
    else:
        assert made.latency_of == "edgesparse"
        assert f"the runtime of {target} is not timed here" in made.notes[0]


@pytest.mark.parametrize(
    ("scheme", "table_rows"), [("symmetric", 0), ("asymmetric", 0), ("table", 0), ("table", 48)]
)
def test_a_matrix_to_time_in_every_scheme(scheme: str, table_rows: int) -> None:
    group_size = 0 if scheme == "table" else 128
    rule = es.Rule(
        bits=4, group_size=128, scheme=scheme, table_rows=table_rows, method="magnitude",
        quantizer="rtn",
    )  # fmt: skip
    spec = FORMATS.get("dense4").spec(
        group_size=group_size, pattern=DENSE, scheme=scheme, table_rows=table_rows
    )
    packed = speed.random_weight(spec, rule)
    assert packed.shape == (speed.ROWS, speed.COLUMNS)
    assert packed.decode().std() == pytest.approx(1, rel=0.05)


def test_only_with_a_limit_on_latency_rows_share_a_scale(llama) -> None:
    """Eight bits with one scale a row are what XNNPACK has kernels for."""
    tensor = next(t for t in llama.tensors if t.kind == "linear")
    rule = es.Rule(bits=4, adjustable=frozenset({"bits", "group_size"}))
    fixed = es.Rule(bits=8, group_size=32, adjustable=frozenset({"sparsity"}))

    def groups(of: es.Rule, *, by_row: bool) -> set[tuple[int, int]]:
        found = possible(tensor, of, by_row=by_row)
        return {(entry.rule.bits, entry.rule.group_size) for entry in found if entry.rule}

    assert groups(rule, by_row=True) - groups(rule, by_row=False) == {(8, 0)}
    assert groups(fixed, by_row=True) == {(8, 32)}
