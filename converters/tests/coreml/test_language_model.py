"""The bundled language model, end to end: half of the weights gone, the rest in four bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from edgesparse_converters.coreml.export import export
from edgesparse_converters.coreml.language import (
    LanguageModel,
    continue_tokens,
    evaluate_package,
    sampler,
)
from edgesparse_converters.coreml.options import Options
from edgesparse_converters.coreml.package import Package

import edgesparse as es
from edgesparse.errors import SourceError, Unsupported, UsageError
from edgesparse.executing import score_text
from edgesparse.exporting import EXPORTERS
from edgesparse.runtime.modules import build_packed

MODEL = Path(__file__).parents[3] / "examples/models/classics-4m"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def small(compressed):
    return compressed(es.load(MODEL), group_size=128)


@pytest.fixture(scope="module")
def artifact(small, tmp_path_factory):
    return es.export(small, path=tmp_path_factory.mktemp("classics") / "classics.mlpackage")


def test_every_weight_and_the_output_are_the_packed_models(small, artifact):
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    assert len(verdict.layers) == len(small.packed) == 29
    half = verdict.outputs[1]
    assert half.name == "logits (float16)"
    assert half.relative_error < 5e-3


def test_the_weight_file_is_what_theory_says(small, artifact):
    """1 bit of mask a weight, 4 a kept one, 16 a scale of 128; the rest is a few records."""
    weights = [packed.codes for packed in small.packed.values()]
    bits = sum(w.keep_mask.size + 4 * w.keep_mask.sum() + 16 * w.scales.size for w in weights)
    found = (artifact.path / WEIGHTS).stat().st_size
    # one 64-byte record and up to 63 of alignment a blob, three blobs a weight; norms and biases
    assert found == pytest.approx(bits / 8, rel=0.02)


def test_the_prediction_is_close(small, artifact):
    predicted = EXPORTERS.get("coreml").predict_nbytes(small.plan)
    assert predicted == pytest.approx(artifact.nbytes, rel=0.01)


def test_a_chosen_length(tiny, tmp_path):
    artifact = es.export(tiny, path=tmp_path / "long.mlpackage", tokens=40)
    main = Package(artifact.path).program.functions["main"]
    assert [named.type.shape for named in main.inputs] == [(1, 40)]
    outputs = EXPORTERS.get("coreml").run(artifact.path, {"input_ids": np.zeros((1, 40), np.int32)})
    assert outputs["logits"].shape == (1, 40, 96)


@pytest.fixture(scope="module")
def tiny(compressed):
    """Grouped-query attention, tied head, random weights of a trained network's size."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
        initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).half().float()
    return compressed(es.load(model.eval()))


@pytest.fixture(scope="module")
def stateful(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("stateful") / "tiny.mlpackage"
    return es.export(tiny, path=path, context=80, prefill=16)


def test_prefill_and_decode_share_one_set_of_weights(tiny, stateful, tmp_path):
    program = Package(stateful.path).program
    assert set(program.functions) == {"prefill", "decode"}
    alone = es.export(tiny, path=tmp_path / "alone.mlpackage").path / WEIGHTS
    shared = stateful.path / WEIGHTS
    assert shared.stat().st_size < 1.1 * alone.stat().st_size


def test_streamed_functions_are_the_file_coremltools_writes(tiny, stateful, tmp_path):
    options = Options(context=80, prefill=16)
    whole = export(tiny, tmp_path / "whole.mlpackage", options, streamed=False)
    assert (stateful.path / WEIGHTS).read_bytes() == (whole.path / WEIGHTS).read_bytes()
    assert stateful.lowering == whole.lowering
    ours, theirs = Package(stateful.path).program, Package(whole.path).program
    assert (ours.default, ours.specification) == (theirs.default, theirs.specification)
    assert ours.metadata["edgesparse"] == theirs.metadata["edgesparse"]
    for name, function in theirs.functions.items():
        assert ours.functions[name].inputs == function.inputs
        assert ours.functions[name].block.outputs == function.block.outputs
        kinds = [[o.type for o in p.functions[name].block.operations] for p in (ours, theirs)]
        assert kinds[0] == kinds[1]


def test_attention_is_one_operator_on_request(tiny, tmp_path):
    path = es.export(tiny, path=tmp_path / "fused.mlpackage", fused_attention=True).path
    kinds = [o.type for o in Package(path).program.functions["main"].block.operations]
    assert kinds.count("scaled_dot_product_attention") == 2
    assert "softmax" not in kinds
    assert es.validate(path, tiny).ok


def test_a_cache_changes_no_number(tiny, stateful):
    verdict = es.validate(stateful, tiny)
    assert verdict.ok, verdict
    assert verdict.outputs[0].relative_error < 1e-4
    assert verdict.outputs[1].relative_error < 1e-2


def packed_continuation(small, prompt, tokens):
    """Continue greedily with the packed model in torch, reading the whole prefix every time."""
    module = build_packed(small)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_generation_is_token_for_token_the_packed_models(tiny, stateful):
    prompt = [7, 3, 90, 14, 55]
    model = LanguageModel(stateful.path)
    made = list(continue_tokens(model, prompt, tokens=64))
    assert made == packed_continuation(tiny, prompt, 64)
    assert len(set(made)) > 5
    # the context of 80 ends what has no end of its own
    longer = list(continue_tokens(model, prompt, tokens=1000))
    assert len(longer) == 75
    assert longer[:64] == made


def test_any_length_up_to_a_limit(tiny, tmp_path):
    artifact = es.export(tiny, path=tmp_path / "m.mlpackage", tokens=24, flexible=True)
    assert es.validate(artifact, tiny).ok
    model = LanguageModel(artifact.path)
    assert model.context == 24
    made = list(continue_tokens(model, [9], tokens=100))
    assert made == packed_continuation(tiny, [9], 23)


def test_sampling_repeats_itself_with_a_seed(stateful):
    model = LanguageModel(stateful.path, precision="float16")
    runs = [
        list(continue_tokens(model, [5, 6, 7], tokens=12, choose=sampler(seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_tokens_beyond_the_context_are_refused(stateful):
    model = LanguageModel(stateful.path)
    with pytest.raises(UsageError, match="expected 1 to 80"):
        model.feed([0] * 81)
    with pytest.raises(UsageError, match="expected 1 to 80"):
        model.feed([])


TEXT = MODEL.parents[1] / "data/validation.txt"


def test_perplexity_of_the_package_is_the_packed_models(small, artifact):
    window = {"text": TEXT, "window": 16, "max_windows": 6}
    expected = es.evaluate(small, **window).perplexity
    found = evaluate_package(artifact.path, small, **window)
    assert found.perplexity == pytest.approx(expected, rel=1e-3)
    assert (found.windows, found.tokens) == (6, 90)
    typed = score_text(artifact.path, TEXT, tokenizer=MODEL, window=16, max_windows=6)
    assert typed.perplexity == pytest.approx(found.perplexity, rel=1e-6)
    with EXPORTERS.get("coreml").open_language_model(artifact.path) as model:
        ends = small.captured.config["eos_token_id"]
        assert model.end_tokens == frozenset([ends] if isinstance(ends, int) else ends or ())
    with pytest.raises(UsageError, match="tokens=17"):
        evaluate_package(artifact.path, small, text=TEXT, window=17)


def test_a_few_lengths(tiny, tmp_path):
    path = es.export(tiny, path=tmp_path / "m.mlpackage", shapes="input_ids=1x8,1x16,1x32").path
    fixed = es.export(tiny, path=tmp_path / "fixed.mlpackage", tokens=32).path
    model, whole = LanguageModel(path), LanguageModel(fixed)
    assert model.context == 32
    for count in (1, 8, 9, 20):
        tokens = list(range(count))
        model.reset()
        whole.reset()
        found, expected = model.feed(tokens), whole.feed(tokens)
        # Of one length the rotary angles are constants, held in float16; of several, computed.
        assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_package_that_is_no_language_model(compressed, tmp_path):
    linear = es.load(torch.nn.Linear(32, 32), example_inputs={"input": torch.zeros(1, 32)})
    path = es.export(compressed(linear), path=tmp_path / "m.mlpackage").path
    with pytest.raises(SourceError, match="not a language model"):
        LanguageModel(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 8, "prefill": 9}, "prefill is 9"),
        ({"context": 8, "tokens": 4, "prefill": 4}, "tokens or a context"),
        ({"flexible": True}, "flexible needs tokens"),
    ],
)
def test_lengths_that_contradict_each_other(tiny, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        es.export(tiny, path=tmp_path / "m.mlpackage", **options)


def test_a_context_beyond_the_models_own(tiny, tmp_path):
    with pytest.raises(Unsupported, match="made for 96"):
        es.export(tiny, path=tmp_path / "m.mlpackage", context=97)
