"""One scale for a whole tensor: found for all rows together, kept by every step after."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.calibrate import Statistics
from edgesparse.errors import RecipeError
from edgesparse.model import TensorKind
from edgesparse.pattern import Pattern
from edgesparse.planner.choose import choose
from edgesparse.quantize.grid import Grid
from edgesparse.quantize.shifted import ShiftedGrid
from edgesparse.recipe import Recipe, Rule
from edgesparse.shares import row_unit
from edgesparse.solve import solve_tensor


def problem(rows: int, columns: int) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(rows + columns)
    X = torch.randn(200, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) * torch.arange(1, rows + 1)[:, None]
    return weight, Statistics(columns=columns, samples=200, hessian=X.T @ X)


def test_the_scale_of_least_error_over_all_rows_by_hand() -> None:
    weight = torch.tensor([[7.0, -8.0, 3.0, 0.0], [1.0, 2.0, -1.0, 5.0]])
    steps = Grid(bits=4, group_size=8, is_shared=True).search(weight)
    assert steps.tolist() == [[1.0], [1.0]]  # every weight is a code already
    rows_alone = Grid(bits=4, group_size=8).search(weight)
    assert rows_alone[1] < 1


@pytest.mark.parametrize("kind", [Grid, ShiftedGrid])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_what_one_long_row_would_have(kind: type[Grid], bits: int) -> None:
    weight, _ = problem(6, 20)
    power = torch.rand(20) + 0.1
    grid = kind(bits=bits, group_size=24, is_shared=True)
    found = grid.search(weight, power)
    wanted = grid.search_group(weight.reshape(1, -1), power.repeat(6))
    assert torch.equal(found[:, 0], wanted.expand(6, *wanted.shape[1:]))


RULES = [
    Rule(bits=bits, group_size=0, one_scale=True, pattern=pattern, method=method,
         quantizer=quantizer, scheme=scheme)
    for bits, (pattern, method), quantizer, scheme in itertools.product(
        (2, 4, 8),
        ((Pattern(), "magnitude"), (Pattern(sparsity=0.5), "sparsegpt"),
         (Pattern(keep=2, of=4), "admm")),
        ("gptq", "rtn"), ("symmetric", "asymmetric"),
    )
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", [(12, 40), (1, 7), (5, 1)])
def test_every_method_keeps_it(rule: Rule, shape: tuple[int, int]) -> None:
    weight, data = problem(*shape)
    storage = choose(rule, shape)
    assert storage is not None
    codes = solve_tensor("w", weight, data, rule, storage.spec)
    assert len(np.unique(codes.scales)) == 1
    assert codes.zeros is None or len(np.unique(codes.zeros)) == 1
    assert row_unit(rule, storage.spec, shape[1]) is None


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_tensor_of_zeros_has_scale_one(scheme: str) -> None:
    rule = Rule(bits=4, group_size=0, one_scale=True, quantizer="rtn", scheme=scheme)
    storage = choose(rule, (4, 16))
    assert storage is not None
    codes = solve_tensor("w", torch.zeros(4, 16), Statistics(columns=16), rule, storage.spec)
    assert not codes.decode().any()
    assert (codes.scales == 1).all()


def test_a_recipe_says_tensor() -> None:
    recipe = Recipe.from_json([{"bits": 4, "group_size": "tensor"}])
    rule = recipe.rules[0]
    assert (rule.one_scale, rule.group_size) == (True, 0)
    assert json.loads(json.dumps(recipe.to_json()))[0]["group_size"] == "tensor"
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json([{"bits": 4, "group_size": "channel"}]).rules[0].one_scale is False


@pytest.mark.parametrize("wrong", [{"group_size": 32}, {"group_size": 0, "scheme": "table"}])
def test_one_scale_has_no_groups_and_no_table(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="one scale for the tensor"):
        Rule(bits=4, one_scale=True, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="unknown key 'one_scale'"):
        Recipe.from_json([{"bits": 4, "one_scale": True}])


def test_it_stays_one_through_compression_recovery_and_the_file(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgesparse.recovery import recover

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    captured = es.load(LlamaForCausalLM(config).eval())
    rule = Rule(
        kind=TensorKind.LINEAR, bits=4, group_size=0, one_scale=True, quantizer="rtn",
        pattern=Pattern(sparsity=0.5), method="magnitude",
    )  # fmt: skip
    plan = es.plan(captured, Recipe((rule,)))
    assert "50 % 4-bit per tensor" in str(plan)
    small = es.compress(captured, plan)
    tokens = torch.randint(0, 60, (800,), generator=torch.Generator().manual_seed(0))
    better = recover(small, data=tokens, steps=5, batch=4, window=16, lr=1e-2)
    small.save(tmp_path / "small")
    read = es.CompressedModel.load(tmp_path / "small", source=captured)
    assert read.plan.to_json() == small.plan.to_json()
    moved = 0
    for name, packed in small.packed.items():
        assert packed.nbytes == next(e.nbytes for e in plan.tensors if e.tensor.name == name)
        after = better.packed[name].codes.scales
        assert len(np.unique(packed.codes.scales)) == len(np.unique(after)) == 1
        moved += int(after[0, 0] != packed.codes.scales[0, 0])
    assert moved
