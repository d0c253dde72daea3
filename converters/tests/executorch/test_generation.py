"""A tiny language model with its cache in the program: prefill, then token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch import EXPORTER
from edgesparse_converters.executorch.assemble import build_reference
from edgesparse_converters.executorch.caching import use_rounded_attention
from edgesparse_converters.executorch.generation import generate, score
from edgesparse_converters.executorch.lowering import plan_uses
from edgesparse_converters.executorch.metadata import read_metadata
from edgesparse_converters.executorch.program import read_program

import edgesparse as es
from edgesparse.errors import UsageError
from edgesparse.exporting import Artifact, export, validate
from edgesparse.model import CapturedModel, CompressedModel

CompressAll = Callable[[CapturedModel], CompressedModel]


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, compress_captured: CompressAll
) -> CompressedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=True, eos_token_id=0, bos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return compress_captured(es.load(folder))


@pytest.fixture(scope="module")
def program(tiny: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("program") / "tiny.pte"
    return export(tiny, "executorch", path, context=24, prefill=4)


PROMPT = (5, 17, 3, 60, 44, 9)


def test_tokens_are_those_of_the_packed_model(tiny: CompressedModel, program: Artifact) -> None:
    """The prompt is no multiple of the prefill: what fills it up must not be seen."""
    made, logits = generate(program.path, PROMPT, tokens=16)
    uses = plan_uses(tiny, tiny.captured.skeleton())
    model = build_reference(tiny, uses, activations="int16")
    with torch.no_grad():
        sequence = torch.tensor([[*PROMPT, *made]])
        rows = model(input_ids=sequence, use_cache=False).logits[0, len(PROMPT) - 1 : -1].numpy()
    assert np.array_equal(made, rows.argmax(-1))
    assert len(set(made.tolist())) > 3  # a loop of one token would prove little
    assert np.linalg.norm(logits - rows) < 1e-3 * np.linalg.norm(rows)


def test_generation_starts_anew_every_time(program: Artifact) -> None:
    first, _ = generate(program.path, PROMPT, tokens=5)
    assert np.array_equal(first, generate(program.path, PROMPT, tokens=5)[0])


def test_methods_share_the_weights(tiny: CompressedModel, program: Artifact) -> None:
    parsed = read_program(program.path)
    assert {"forward", "prefill", "get_max_context_len", "use_kv_cache"} <= set(parsed.methods)
    packed = sum(tensor.nbytes for tensor in tiny.packed.values())
    assert parsed.constants_nbytes < 1.2 * packed
    assert EXPORTER.inspect(program.path)["methods"]["prefill"]["inputs"][0]["shape"] == [1, 4]


def test_more_tokens_than_context(program: Artifact) -> None:
    with pytest.raises(UsageError, match="has room for 1 to 24"):
        generate(program.path, PROMPT, tokens=20)
    with pytest.raises(UsageError, match="0 tokens of prompt"):
        generate(program.path, (), tokens=2)


def test_lengths_out_of_range(tiny: CompressedModel, tmp_path: Path) -> None:
    for context, prefill in ((0, 1), (8, 9), (65, 4)):
        with pytest.raises(UsageError, match="expected 1 <= prefill <= context <= 64"):
            export(tiny, "executorch", tmp_path / "a.pte", context=context, prefill=prefill)


def test_validate_generates(tiny: CompressedModel, program: Artifact) -> None:
    verdict = validate(program, tiny)
    assert verdict.ok, verdict
    assert len(verdict.layers) == 2 * (2 * 7 + 2)  # both methods: seven linears a layer, tied twice
    assert verdict.notes[0].startswith("14 tokens after a random prompt of 11")


def test_the_score_of_a_text_is_the_packed_models(tiny: CompressedModel, program: Artifact) -> None:
    windows = np.random.default_rng(1).integers(0, 96, (3, 22))
    uses = plan_uses(tiny, tiny.captured.skeleton())
    model = build_reference(tiny, uses, activations="int16")
    with torch.no_grad():
        tokens = torch.from_numpy(windows)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert score(program.path, windows.tolist()) == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture(scope="module")
def byte_program(tiny: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("program") / "bytes.pte"
    return export(tiny, "executorch", path, context=24, prefill=4, cache="int8")


def test_an_int8_cache_is_a_quarter_and_is_said(program: Artifact, byte_program: Artifact) -> None:
    """Two layers of keys and values, 2 heads of 16 in 24 positions; a scale of 4 bytes each."""
    floats, codes = (read_program(path) for path in (program.path, byte_program.path))
    for method in ("forward", "prefill"):
        caches = [p.methods[method]["non_const_buffer_sizes"][2] for p in (floats, codes)]
        assert caches[0] - caches[1] == 2 * 2 * 24 * 2 * (4 * 16 - (16 + 4))
    assert "edgesparse::cache_rows.out" in codes.operators
    assert read_metadata(codes).cache == "int8"
    assert read_metadata(floats).cache == "float32"


def test_an_int8_cache_is_validated_with_its_own_rounding(
    tiny: CompressedModel, byte_program: Artifact
) -> None:
    verdict = validate(byte_program, tiny)
    assert verdict.ok, verdict
    made, logits = generate(byte_program.path, PROMPT, tokens=8)
    uses = plan_uses(tiny, tiny.captured.skeleton())
    with torch.no_grad():
        sequence = torch.tensor([[*PROMPT, *made[:-1]]])
        rows = []
        for rounded in (True, False):
            model = build_reference(tiny, uses, activations="int16")
            if rounded:
                assert use_rounded_attention(model)
            found = model(input_ids=sequence, use_cache=False).logits[0, len(PROMPT) - 1 :]
            rows.append(found.numpy())
    errors = [np.linalg.norm(logits - reference) for reference in rows]
    # A rounding tie of a key or value moves it by a step, so not as close as with floats.
    assert errors[0] < 5e-3 * np.linalg.norm(rows[0])
    assert errors[0] < errors[1]  # the rounding is there, and it is this one


def test_a_cache_it_cannot_have(tiny: CompressedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cache 'int4': one of float32, int8, with context"):
        export(tiny, "executorch", tmp_path / "a.pte", context=24, cache="int4")
    with pytest.raises(UsageError, match="cache 'int8': one of float32, int8, with context"):
        export(tiny, "executorch", tmp_path / "a.pte", cache="int8")


def test_no_room_is_planned_for_what_is_written_in_place(program: Artifact) -> None:
    """The cache has an arena of its own, 24 positions; there is no second one of its size."""
    _, activations, cache = read_program(program.path).methods["forward"]["non_const_buffer_sizes"]
    assert cache >= 2 * 2 * 24 * 2 * 4 * 16
    assert activations < cache
