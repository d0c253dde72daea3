"""Asymmetric codes and tables through the whole product: compress, save, run, export or refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.errors import Unsupported
from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS, scheme_bits
from edgesparse.runtime.modules import build_decoded, build_packed

TOKENS = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(0))
OPTIONS = {
    "asymmetric": {"bits": 3, "group_size": 16},
    "channel": {"bits": 4, "group_size": -1, "scheme": "asymmetric"},
    "table": {"bits": 4},
    "rows": {"bits": 3, "table_rows": 16, "scheme": "table"},
}


@pytest.fixture(scope="module")
def model() -> es.CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def job(request: pytest.FixtureRequest, model: es.CapturedModel) -> tuple[str, CompressedModel]:
    options = {"scheme": request.param, "quantizer": "gptq", **OPTIONS[request.param]}
    rules = (
        es.Rule(name="*down_proj*", pattern=es.Pattern.parse("2:4"), **options),
        es.Rule(name="*q_proj*", pattern=es.Pattern(sparsity=0.5), method="wanda", **options),
        es.Rule(**options),
    )
    made = es.plan(model, es.Recipe(rules))
    return options["scheme"], es.compress(model, made, TOKENS, windows=8, window=32)


def test_every_tensor_is_of_the_scheme_and_the_size_planned(job) -> None:
    scheme, small = job
    assert {packed.spec.scheme for packed in small.packed.values()} == {scheme}
    for entry in small.plan.tensors:
        if entry.spec is not None:
            packed = small.packed[entry.tensor.name]
            assert packed.spec == entry.spec
            assert packed.nbytes == pytest.approx(entry.nbytes, rel=0.1)
    assert small.packed["model.layers.0.mlp.down_proj.weight"].codes.sparsity in (0, 0.5)


def test_the_model_saved_is_the_model_loaded(job, tmp_path) -> None:
    _, small = job
    again = CompressedModel.load(small.save(tmp_path / "m"), source=small.captured)
    assert again.plan == small.plan
    for name, packed in small.packed.items():
        assert again.packed[name].spec == packed.spec
        assert np.array_equal(again.packed[name].decode(), packed.decode())


def test_it_computes_from_packed_bytes(job) -> None:
    _, small = job
    tokens = TOKENS[:32].reshape(2, 16)
    found, wanted = (
        build(small)(input_ids=tokens).logits for build in (build_packed, build_decoded)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert es.evaluate(small, inputs=[{"input_ids": tokens}]).nbytes == small.nbytes


def test_executorch_refuses_by_name_when_planned_and_when_exported(job, tmp_path) -> None:
    scheme, small = job
    with pytest.raises(Unsupported, match=f"executorch cannot hold .*layers.0.* \\({scheme}\\)"):
        es.export(small, path=tmp_path / "m.pte")
    rule = es.Rule(scheme=scheme, bits=4)
    with pytest.raises(Unsupported, match=f"executorch holds no {scheme} codes"):
        es.plan(small.captured, es.Recipe((rule,)), target="executorch")


@pytest.mark.parametrize("scheme", ["asymmetric", "table"])
def test_a_budget_chooses_among_the_bits_of_the_scheme(model, scheme) -> None:
    rule = es.Rule(scheme=scheme, bits=4, adjustable=frozenset({"bits", "group_size", "sparsity"}))
    recipe = es.Recipe((rule,))
    whole = es.plan(model, recipe).nbytes
    fitted = es.plan(model, recipe, budget=es.Budget(file=int(0.8 * whole)))
    assert fitted.nbytes <= 0.8 * whole
    specs = [entry.spec for entry in fitted.tensors if entry.spec is not None]
    assert {spec.scheme for spec in specs} == {scheme}
    assert {spec.bits for spec in specs} <= set(scheme_bits(scheme))
    assert all(FORMATS.get(spec.name) for spec in specs)
