"""Three modules of one compressed model compute from the same numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from edgesparse.errors import SourceError
from edgesparse.model import TensorKind
from edgesparse.pattern import Pattern
from edgesparse.recipe import Recipe, Rule
from edgesparse.runtime.modules import build_decoded, build_exportable, build_packed

TOKENS = torch.tensor([[1, 2, 3, 39, 0]])
SPARSE = Recipe((Rule(bits=4, group_size=32, pattern=Pattern(sparsity=0.6)),))


def reference(compressed):
    """The captured module with decoded weights, put there without our code."""
    module = compressed.captured.loader().float()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, packed in compressed.packed.items():
        info = compressed.captured.by_name[name]
        for alias in (info.name, *info.aliases):
            parameters[alias].data = torch.from_numpy(packed.decode())
    return module


def test_something_of_every_kind_is_packed(compressed):
    kinds = {compressed.captured.by_name[name].kind for name in compressed.packed}
    assert {TensorKind.EMBEDDING, TensorKind.LINEAR, TensorKind.CONV} <= kinds


def test_decoded_equals_the_reference(compressed):
    torch.testing.assert_close(
        build_decoded(compressed)(TOKENS), reference(compressed)(TOKENS), rtol=0, atol=0
    )


def test_a_hollow_weight_has_its_shape_and_takes_no_memory(compressed):
    hollow, *_ = compressed.packed
    module = build_decoded(compressed, hollow={hollow})
    weights = dict(module.named_parameters(remove_duplicate=False))
    assert tuple(weights[hollow].shape) == compressed.packed[hollow].shape
    assert weights[hollow].untyped_storage().nbytes() == 4
    whole = dict(build_decoded(compressed).named_parameters(remove_duplicate=False))
    aliases = compressed.captured.by_name[hollow].aliases
    for name in set(whole) - {hollow, *aliases}:
        assert torch.equal(weights[name], whole[name])


def test_exportable_equals_decoded_bit_for_bit(compressed):
    torch.testing.assert_close(
        build_exportable(compressed)(TOKENS), build_decoded(compressed)(TOKENS), rtol=0, atol=0
    )


def test_packed_computes_the_same(compressed):
    # Sums in another order: float32 rounding, no more.
    torch.testing.assert_close(
        build_packed(compressed)(TOKENS), build_decoded(compressed)(TOKENS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("build", [build_packed, build_exportable])
def test_every_weight_can_still_be_read(compressed, build):
    module = build(compressed)
    for name, packed in compressed.packed.items():
        info = compressed.captured.by_name[name]
        for alias in (info.name, *info.aliases):
            path, _, leaf = alias.rpartition(".")
            weight = getattr(module.get_submodule(path), leaf)
            torch.testing.assert_close(weight, torch.from_numpy(packed.decode()), rtol=0, atol=0)


@pytest.mark.parametrize("build", [build_packed, build_exportable])
def test_tied_weights_share_one_payload(compressed, build):
    module = build(compressed)
    assert module.embedding.weight_payload is module.head.weight_payload
    ties = build_decoded(compressed)
    assert ties.embedding.weight is ties.head.weight


@pytest.mark.parametrize("build", [build_packed, build_decoded, build_exportable])
def test_the_compressed_model_is_not_changed(compressed, build):
    before = {name: packed.decode() for name, packed in compressed.packed.items()}
    kept = {name: tensor.clone() for name, tensor in compressed.kept.items()}
    module = build(compressed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(1)
    for name, packed in compressed.packed.items():
        assert (packed.decode() == before[name]).all()
    for name, tensor in compressed.kept.items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0)


@pytest.mark.parametrize("build", [build_packed, build_decoded, build_exportable])
def test_modules_are_ready_to_evaluate(compressed, build):
    module = build(compressed)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize("build", [build_packed, build_exportable])
def test_a_copy_computes_the_same(compressed, build):
    module = build(compressed)
    copied = copy.deepcopy(module)
    torch.testing.assert_close(copied(TOKENS), module(TOKENS), rtol=0, atol=0)


def test_exportable_traces_and_names_its_tensors(everything, compress_random):
    compressed = compress_random(everything, SPARSE)
    module = build_exportable(compressed)
    program = torch.export.export(module, (TOKENS,), strict=False)
    names = {
        node.args[-1]
        for node in program.graph.nodes
        if node.target is torch.ops.edgesparse.dequantize.default
    }
    assert names == set(compressed.packed)
    torch.testing.assert_close(program.module()(TOKENS), module(TOKENS))


def test_packed_linears_and_embeddings_never_decode(everything, compress_random, monkeypatch):
    recipe = Recipe(
        (
            Rule(kind=TensorKind.EMBEDDING, bits=4, group_size=32),
            Rule(name="linear.weight", bits=4, group_size=32),
        )
    )
    module = build_packed(compress_random(everything, recipe))

    def refuse(*_):
        raise AssertionError("a dense weight was made")

    monkeypatch.setattr("edgesparse.runtime.payload.decode", refuse)
    assert module(TOKENS).shape == (1, 5, 40)


def test_at_most_one_weight_is_held_decoded(everything, compress_random):
    compressed = compress_random(everything, SPARSE)
    module = build_packed(compressed)
    first = module.convolution.weight
    assert module.convolution.weight is first
    assert module.linear.weight.shape == (64, 64)
    assert module.convolution.weight is not first


def test_other_types_of_activations(everything, compress_random):
    compressed = compress_random(everything, SPARSE)
    for build in (build_packed, build_decoded, build_exportable):
        module = build(compressed, dtype=torch.float64)
        module.positions = module.positions.double()
        assert module(TOKENS).dtype == torch.float64


def test_a_missing_weight_is_named(everything, compress_random):
    compressed = compress_random(everything, SPARSE)
    kept = {name: tensor for name, tensor in compressed.kept.items() if name != "linear.bias"}
    with pytest.raises(SourceError, match=r"no stored value, first linear\.bias"):
        build_decoded(replace(compressed, kept=kept))


def test_a_foreign_weight_is_named(everything, compress_random):
    compressed = compress_random(everything, SPARSE)
    kept = {**compressed.kept, "other.bias": torch.zeros(3)}
    with pytest.raises(SourceError, match=r"other\.bias: stored, but the model has no such"):
        build_packed(replace(compressed, kept=kept))
