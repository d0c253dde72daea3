"""A tiny mixture of experts: one operator, in which every row meets its own expert."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from edgesparse_converters.executorch import EXPORTER
from edgesparse_converters.executorch.operators import LINEAR, PackedLinear
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.routing import ROUTED, RoutedLinear

import edgesparse as es
from edgesparse.exporting import export, validate
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.pattern import Pattern

EXPERTS, LAYERS = 4, 1


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> CapturedModel:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        num_local_experts=EXPERTS, num_experts_per_tok=2, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mixture")
    MixtralForCausalLM(config).save_pretrained(folder)
    return es.load(folder)


SECOND = "re:.*experts.down_proj[.]1[.]weight"
HALF = Pattern(sparsity=0.5)


def compressed(captured: CapturedModel, *, second: dict[str, Any]) -> CompressedModel:
    """Return the mixture with half of every expert cut, but one matrix of its second."""
    plain = {"method": "magnitude", "quantizer": "rtn", "group_size": 16}
    rules = (
        es.Rule(kind=None, name=SECOND, **plain, **second),
        es.Rule(kind="expert", bits=4, pattern=HALF, **plain),
    )
    return es.compress(captured, es.plan(captured, recipe=es.Recipe(rules)), calibration=None)


@pytest.fixture(scope="module")
def mixture(captured: CapturedModel) -> CompressedModel:
    """One expert is stored as 8 bits, so that formats differ."""
    return compressed(captured, second={"bits": 8})


def test_experts_are_one_operator(mixture: CompressedModel, tmp_path: Path) -> None:
    artifact = export(mixture, "executorch", tmp_path / "mixture.pte", context=24, prefill=4)
    program = read_program(artifact.path)
    calls = Counter(use.operator for use in program.kernel_uses("forward"))
    assert calls[ROUTED] == 2 * LAYERS
    experts = sum(tensor.nbytes for name, tensor in mixture.packed.items() if "experts" in name)
    others = sum(4 * tensor.numel() for tensor in mixture.kept.values())
    assert artifact.nbytes < experts + 2 * others + 150_000  # no decoded copy: 4 times the packed
    verdict = validate(artifact, mixture)
    assert verdict.ok, verdict
    names = {layer.name for layer in verdict.layers if layer.equal}
    assert {name for name in mixture.packed if "experts" in name} <= names


@pytest.mark.parametrize(
    "second", [{"bits": 16}, {"bits": 16, "pattern": HALF}], ids=["as it is", "float16"]
)
def test_what_one_operator_cannot_hold_is_planned_as_it_is_written(
    captured: CapturedModel, second: dict[str, Any], tmp_path: Path
) -> None:
    """One matrix in float: all experts are computed, each by an operator of its own."""
    mixture = compressed(captured, second=second)
    stack = [entry for entry in mixture.plan.tensors if "down_proj" in entry.tensor.name]
    assert len({EXPORTER.routed_as(entry) for entry in stack}) == 2
    artifact = export(mixture, "executorch", tmp_path / "mixture.pte", tokens=4)
    calls = Counter(use.operator for use in read_program(artifact.path).kernel_uses("forward"))
    packed = sum("experts" in name for name in mixture.packed)
    assert (calls[ROUTED], calls[LINEAR]) == (0, packed)


@pytest.mark.parametrize("activations", ["int8", "int16", "float32"])
def test_a_row_meets_its_own_expert(mixture: CompressedModel, activations: str) -> None:
    stack = [
        mixture.packed[f"model.layers.0.mlp.experts.down_proj.{i}.weight"] for i in range(EXPERTS)
    ]
    linears = [PackedLinear(packed, None, activations) for packed in stack]
    x, chosen = torch.randn(9, 48), torch.tensor([3, 0, 0, 2, 3, 1, 0, 2, 2])
    found = RoutedLinear(linears)(x, chosen)
    for row, expert in enumerate(chosen.tolist()):
        assert torch.allclose(found[row], linears[expert](x[row : row + 1])[0], atol=1e-6)
