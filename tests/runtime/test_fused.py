"""The compiled step against the packed model in torch: the same tokens, the same cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_kernels import _isa
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import edgesparse
from edgesparse.errors import UsageError
from edgesparse.packed import FORMATS
from edgesparse.pattern import Pattern
from edgesparse.recipe import Recipe, Rule
from edgesparse.runtime import ops
from edgesparse.runtime.fused import FusedOptions, FusedStep
from edgesparse.runtime.generate import _Step, packed_step
from edgesparse.runtime.llama import obstacle
from edgesparse.runtime.modules import build_packed

BITMASK = Rule(bits=4, group_size=128, pattern=Pattern(sparsity=0.5))
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 100, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def classics():
    return edgesparse.load(Path(__file__).parents[2] / "examples/models/classics-4m")


def small(kind, config, **options):
    torch.manual_seed(0)
    module = kind(config(**SMALL | options)).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # biases and norms of more than zeros and ones
            parameter += 0.1 * torch.randn_like(parameter)
    return edgesparse.load(module, example_inputs={"input_ids": torch.arange(5)[None]})


def read(step, ids, chunks=()):
    """Return the logits after ``ids`` and after each further chunk."""
    return torch.stack([step(torch.tensor([part])).clone() for part in (ids, *chunks)])


def assert_close(found, expected, tolerance):
    """Relative to the largest logit of each position."""
    assert ((found - expected).abs().amax(-1) <= tolerance * expected.abs().amax(-1)).all()


def test_the_same_64_tokens(classics, compress_random):
    compressed = compress_random(classics, Recipe((BITMASK,)))
    module = build_packed(compressed)
    fused, plain = FusedStep(module, 80, FusedOptions()), _Step(module, classics)
    pending = torch.tensor([[5, 6, 7, 100]])
    for _ in range(64):
        found, expected = fused(pending), plain(pending)
        assert int(found.argmax()) == int(expected.argmax())
        pending = expected.argmax().reshape(1, 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_of_codes(compress_random, bits):
    captured = small(LlamaForCausalLM, LlamaConfig, attention_bias=True, mlp_bias=True)
    module = build_packed(compress_random(captured, Recipe((Rule(bits=bits, group_size=32),))))
    step = FusedStep(module, 20, FusedOptions())
    chunks = ([4], [1, 2], [3])
    expected = read(_Step(module, captured), [9, 8, 7], chunks)
    assert_close(read(step, [9, 8, 7], chunks), expected, 2e-3)


def test_norms_of_heads_and_layers_that_were_kept(compress_random):
    captured = small(Qwen3ForCausalLM, Qwen3Config)
    recipe = Recipe((Rule(name="re:.*q_proj.*|lm_head.*"), BITMASK))
    module = build_packed(compress_random(captured, recipe))
    assert "weight_payload" not in module.lm_head._modules
    expected = read(_Step(module, captured), list(range(20)), ([4],))
    assert_close(
        read(FusedStep(module, 24, FusedOptions()), list(range(20)), ([4],)), expected, 2e-3
    )


@pytest.fixture
def same_arithmetic(monkeypatch):
    """Let torch's layers take activations as the step does."""

    def choose(kind):
        monkeypatch.setattr(ops.kernels, "matmul", partial(ops.kernels.matmul, kind=kind))

    return choose


MIXTURES = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 5}),
    # A layer without experts, shares that do not add up to 1, two experts more than a register.
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 18, "num_experts_per_tok": 4, "moe_intermediate_size": 48,
            "mlp_only_layers": [1], "norm_topk_prob": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("kind", [Activations.INT8, Activations.INT16])
def test_a_mixture_of_experts(compress_random, same_arithmetic, family, kind):
    model, config, options = MIXTURES[family]
    captured = small(model, config, **options)
    module = build_packed(compress_random(captured, Recipe((BITMASK,))))
    assert not obstacle(module)
    fused, plain = FusedStep(module, 40, FusedOptions(activations=kind)), _Step(module, captured)
    same_arithmetic(kind)
    pending = torch.tensor([[5]])
    for _ in range(32):
        found, expected = fused(pending), plain(pending)
        assert int(found.argmax()) == int(expected.argmax())
        # A digit may round the other way where floats were summed in another order.
        assert_close(found[None], expected[None], 2e-2 if kind is Activations.INT8 else 1e-4)
        pending = expected.argmax().reshape(1, 1)


def test_only_routed_experts_are_computed(compress_random):
    captured = small(MixtralForCausalLM, MixtralConfig, num_local_experts=5, num_hidden_layers=1)
    module = build_packed(compress_random(captured, Recipe((BITMASK,))))
    step, met = FusedStep(module, 16, FusedOptions()), set()
    layer = module.model.layers[0]
    layer.mlp.gate.register_forward_hook(
        lambda _, inputs, output: met.update(output[2].tolist()[0])
    )
    expected = _Step(module, captured)(torch.tensor([[7]]))
    numbers = step._weights.matrices
    for expert in set(range(5)) - met:  # whoever reads at address 1 is killed
        for part in (5 + expert, 10 + expert):
            numbers[part, 7:13] = 1
    assert len(met) == 2
    assert_close(step(torch.tensor([[7]]))[None], expected[None], 2e-3)


STRUCTURED = {
    "nm4": Pattern.parse("2:4"),
    "n64": Pattern.parse("16:64"),
    "column16": Pattern.parse("16x1", sparsity=0.5),
    "block16x8": Pattern.parse("16x8", sparsity=0.5),
}


@pytest.fixture(params=["generic", "avx2", "avx512", "amx"])
def isa(request, monkeypatch):
    if request.param not in {each.name for each in _isa.available()}:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("EDGESPARSE_ISA", request.param)
    return request.param


@pytest.mark.slow  # compiles the step once more for each set
@pytest.mark.parametrize("kind", [Activations.INT8, Activations.INT16])
def test_structured_masks(compress_random, same_arithmetic, isa, kind):
    """All four layouts in one model, from their own bytes where the set has kernels for them."""
    captured = small(LlamaForCausalLM, LlamaConfig, hidden_size=256, intermediate_size=320)
    places = {"q_proj": "n64", "k_proj": "column16", "v_proj": "nm4", "o_proj": "block16x8",
              "gate_proj": "column16", "up_proj": "nm4", "down_proj": "column16"}  # fmt: skip
    recipe = Recipe(
        tuple(
            Rule(
                name=f"*{leaf}*", bits=4, group_size=128, pattern=STRUCTURED[layout],
                method="magnitude", quantizer="rtn",
            )
            for leaf, layout in places.items()
        )
    )  # fmt: skip
    compressed = edgesparse.compress(captured, edgesparse.plan(captured, recipe))
    packed = {
        name: FORMATS.get(places[name.split(".")[-2]]).pack(one.codes, pattern=one.spec.pattern)
        for name, one in compressed.packed.items()
    }
    module = build_packed(replace(compressed, packed=packed))
    step = FusedStep(module, 16, FusedOptions(activations=kind))
    held = {type(one) for one in step._held}
    assert (StructuredMatrix in held) is (isa != "generic")
    assert (PackedMatrix in held) is (isa == "generic")
    same_arithmetic(kind)
    expected = read(_Step(module, captured), [1], ([2], [3], [4]))
    assert_close(read(step, [1], ([2], [3], [4])), expected, 1e-4)


@pytest.mark.slow  # compiles the step once more
@pytest.mark.parametrize("activations", [Activations.INT8, Activations.INT16])
def test_threads_change_nothing(classics, compress_random, activations):
    mixture = small(MixtralForCausalLM, MixtralConfig, num_local_experts=5)
    for captured in (classics, mixture):
        module = build_packed(compress_random(captured, Recipe((BITMASK,))))
        one = FusedStep(module, 16, FusedOptions(activations=activations))
        two = FusedStep(module, 16, FusedOptions(activations=activations, threads=2))
        assert torch.equal(read(one, [1, 2], ([3],)), read(two, [1, 2], ([3],)))


def test_a_cache_of_bytes_is_close(classics, compress_random):
    module = build_packed(compress_random(classics, Recipe((BITMASK,))))
    ids, chunks = list(range(30)), ([3], [4])
    exact = read(FusedStep(module, 40, FusedOptions()), ids, chunks)
    found = read(FusedStep(module, 40, FusedOptions(byte_cache=True)), ids, chunks)
    # int8 rounds keys and values by up to 1/254 of the largest of a head.
    assert_close(found, exact, 0.05)
    assert not torch.equal(found, exact)


def test_what_stands_in_the_way_is_said(compress_random, everything):
    said = []
    packed_step(
        compress_random(everything, Recipe((BITMASK,))), capacity=8, options=FusedOptions(),
        say=said.append,
    )  # fmt: skip
    assert said == [
        "runs layer by layer in torch with float32 activations: a model of type Everything has no "
        "compiled step"
    ]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"head_dim": 16}, "heads of 16 dimensions"),
        ({"intermediate_size": 40}, "40 gated units"),
    ],
)
def test_other_architectures_are_an_obstacle(compress_random, options, found):
    captured = small(LlamaForCausalLM, LlamaConfig, **options)
    assert obstacle(build_packed(compress_random(captured, Recipe((BITMASK,))))) == found


def test_tables_are_an_obstacle(compress_random):
    captured = small(LlamaForCausalLM, LlamaConfig)
    rule = Rule(bits=4, scheme="table")
    found = obstacle(build_packed(compress_random(captured, Recipe((rule,)))))
    assert found == "model.layers.0.self_attn.q_proj in a layout of other codes or groups"


def test_more_tokens_than_room_are_refused(compress_random):
    captured = small(LlamaForCausalLM, LlamaConfig)
    step = FusedStep(
        build_packed(compress_random(captured, Recipe((BITMASK,)))), 10, FusedOptions()
    )
    with pytest.raises(IndexError, match="17 positions, room for 16"):
        step(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize("threads", [0, 4096])
def test_threads_out_of_range_are_refused(threads):
    with pytest.raises(UsageError, match="threads is"):
        FusedOptions(threads=threads)


def test_the_exponential():
    """Within 2 units in the last place of float64's, everywhere between its clips."""
    import numba
    from edgesparse_kernels._floats import exp
    from edgesparse_kernels._simd import load_floats, store_floats

    @numba.njit
    def sixteen(x, out):
        store_floats(np.int64(out.ctypes.data), exp(load_floats(np.int64(x.ctypes.data))))

    x, out = np.empty(16, np.float32), np.empty(16, np.float32)
    for begin in np.linspace(-87, 87, 400):
        x[:] = begin + np.linspace(0, 1, 16)
        sixteen(x, out)
        exact = np.exp(x.astype(np.float64))
        assert np.all(np.abs(out - exact) <= 2 * np.spacing(exact.astype(np.float32)))
