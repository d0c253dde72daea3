"""Whose products a limit on latency counts: those of the target's runtime where it can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

import edgesparse as es
from edgesparse.budget import Budget
from edgesparse.errors import BudgetExceeded, MissingDependency, UsageError
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
    accepts = frozenset({"dense4", "dense8", "nm4", "bitmask4", "bitmask16"})
    packages: tuple[str, ...] = ()

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates, self.calls = rates, 0

    def product_rates(
        self, entries: Sequence[TensorPlan], *, activations: str = "int16"
    ) -> list[float]:
        if activations not in ("int8", "int16"):
            raise UsageError(f"activations {activations!r}: one of int8, int16")
        self.calls += 1
        pace = 0.5 if activations == "int8" else 1.0
        names = [entry.spec.name if entry.spec else "" for entry in entries]
        return [pace * self.rates.get(name, OTHERS) for name in names]

    def routed_as(self, entry: TensorPlan, *, activations: str = "int16") -> str | None:
        if entry.spec is None:
            return None
        return "float32" if entry.spec.bits == 16 else activations

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


@pytest.fixture(scope="module")
def mixtral() -> CapturedModel:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=64, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    return es.load(transformers.MixtralForCausalLM(config).eval())


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


class TestOptions:
    """What the export will be given is what is timed."""

    def test_the_plan_is_made_with_them_and_says_so(self, llama, register) -> None:
        register(Runtime(DENSE_FASTEST))
        limit, options = Budget(latency="1s"), {"activations": "int8"}
        recipe = es.Recipe((es.Rule(kind="linear", bits=4, group_size=32, quantizer="rtn"),))
        usual = plan(llama, recipe, budget=limit, target="fast")
        made = plan(llama, recipe, budget=limit, target="fast", options=options)
        assert made.latency_ns == usual.latency_ns / 2
        assert (usual.options, made.options) == ({}, options)
        assert "products of one token by fast with activations=int8, here" in str(made)
        assert Plan.from_json(made.to_json()) == made
        with pytest.raises(BudgetExceeded, match="by fast with activations=int8, here"):
            plan(llama, recipe, budget=Budget(latency="1us"), target="fast", options=options)

    def test_a_limit_only_they_keep_is_kept(self, llama, register) -> None:
        register(Runtime({}))
        limit = Budget(latency=sum(t.numel for t in llama.tensors if t.kind == "linear") * 5)
        with pytest.raises(BudgetExceeded):
            plan(llama, budget=limit, target="fast")
        made = plan(llama, budget=limit, target="fast", options={"activations": "int8"})
        assert made.latency_ns <= limit.latency

    def test_without_a_limit_they_are_kept_for_the_export(self, llama, register) -> None:
        register(Runtime({}))
        options = {"activations": "int8"}
        assert plan(llama, target="fast", options=options).options == options

    @pytest.mark.parametrize(
        ("target", "options", "words"),
        [
            ("fast", {"cache": "int8"}, "option 'cache': a plan for fast counts activations; give"),
            ("fast", {"activations": "int7"}, "activations 'int7': one of int8, int16"),
            ("coreml", {"activations": "int8"}, "a plan for coreml counts none"),
            (None, {"activations": "int8"}, "a plan for no target counts none"),
        ],
    )
    def test_others_are_refused(self, llama, register, target, options, words) -> None:
        register(Runtime({}))
        with pytest.raises(UsageError, match=words):
            plan(llama, target=target, options=options)


class TestExperts:
    """A token meets the experts it is sent to where the runtime can hold them as one operator."""

    ALONE = "model.layers.0.mlp.experts.down_proj.3.weight"
    PACKED = es.Rule(kind="expert", bits=4, group_size=32, quantizer="rtn")

    def numel(self, mixtral: CapturedModel, kind: str, name: str = "") -> int:
        return sum(t.numel for t in mixtral.tensors if t.kind == kind and name in t.name)

    def made(self, mixtral: CapturedModel, *rules: es.Rule) -> Plan:
        return plan(mixtral, es.Recipe(rules), budget=Budget(latency="1s"), target="fast")

    def test_with_one_left_as_it_is_all_are_computed(self, mixtral, register) -> None:
        register(Runtime({"dense4": 1.0}))
        layer, alone = (self.numel(mixtral, "expert", of) for of in ("layers.0", self.ALONE))
        rest = OTHERS * self.numel(mixtral, "linear")
        assert self.made(mixtral, self.PACKED).latency_ns == rest + layer / 4 + layer / 4
        made = self.made(mixtral, es.Rule(name=self.ALONE, bits=16), self.PACKED)
        assert made.latency_ns == rest + layer + (OTHERS - 1) * alone + layer / 4

    def test_with_one_of_another_kind_of_activations_too(self, mixtral, register) -> None:
        register(Runtime({"dense4": 1.0, "bitmask16": 1.0}))
        half = es.Rule(name=self.ALONE, bits=16, pattern=es.Pattern(sparsity=0.5))
        layer = self.numel(mixtral, "expert", "layers.0")
        rest = OTHERS * self.numel(mixtral, "linear")
        assert self.made(mixtral, half, self.PACKED).latency_ns == rest + layer + layer / 4

    def test_a_choice_that_would_compute_all_is_made_only_within_the_limit(
        self, mixtral, register
    ) -> None:
        """Left as they are, experts lose nothing: with time enough all are, else not."""
        register(Runtime({"dense8": 1.0, "dense4": 1.0}))

        def formats(made: Plan) -> set[str]:
            experts = (entry for entry in made.tensors if entry.tensor.kind == "expert")
            return {entry.spec.name if entry.spec else "" for entry in experts}

        free = plan(mixtral, budget=Budget(latency="1s"), target="fast")
        assert formats(free) == {""}
        for part in (2, 8, 16):
            limit = free.latency_ns // part
            made = plan(mixtral, budget=Budget(latency=limit), target="fast")
            assert made.latency_ns <= limit
            assert formats(made) == {"dense8"}

    def test_our_own_kernels_compute_only_those_a_token_meets(self, mixtral, own_rates) -> None:
        recipe = es.Recipe((es.Rule(name=self.ALONE, bits=16), self.PACKED))
        made = plan(mixtral, recipe, budget=Budget(latency="1s"))
        experts, alone = (self.numel(mixtral, "expert", of) for of in ("", self.ALONE))
        rest = 2 * self.numel(mixtral, "linear")
        assert made.latency_ns == rest + (0.5 * (experts - alone) + 2 * alone) / 4


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
