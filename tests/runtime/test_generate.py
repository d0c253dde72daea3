"""Generation: with and without a cache the same text; seeds, ends and contexts respected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import edgesparse
from edgesparse.errors import SourceError, UsageError
from edgesparse.model import TensorKind
from edgesparse.recipe import Recipe, Rule
from edgesparse.runtime import generate, stream
from edgesparse.runtime.forward import logits
from edgesparse.runtime.generate import _Step
from edgesparse.runtime.text import tokenizer

PROMPT = "It was a dark evening when"


@pytest.fixture(scope="module")
def classics():
    return edgesparse.load(Path(__file__).parents[2] / "examples/models/classics-4m")


def test_greedy_is_the_likeliest_token_each_time(classics):
    words = tokenizer(classics)
    ids = words.encode(PROMPT, add_special_tokens=False).ids
    module = classics.loader().float()
    for _ in range(5):
        ids.append(int(logits(module, classics, torch.tensor([ids]))[0, -1].argmax()))
    assert generate(classics, PROMPT, tokens=5, temperature=0) == words.decode(ids)


def test_the_cache_changes_nothing(classics):
    module = classics.loader().float()
    cached, plain = _Step(module, classics), _Step(module, classics)
    plain._cached = False
    for tokens in ([[5, 6, 7]], [[8]], [[9]]):
        with torch.no_grad():
            torch.testing.assert_close(
                cached(torch.tensor(tokens)), plain(torch.tensor(tokens)), rtol=1e-4, atol=1e-4
            )


def test_a_seed_fixes_the_text(classics):
    first = generate(classics, PROMPT, tokens=12, seed=1)
    assert generate(classics, PROMPT, tokens=12, seed=1) == first
    assert generate(classics, PROMPT, tokens=12, seed=2) != first


def test_one_candidate_is_greedy(classics):
    sampled = generate(classics, PROMPT, tokens=6, top_k=1, temperature=5.0)
    assert sampled == generate(classics, PROMPT, tokens=6, temperature=0)


def test_a_compressed_model_generates_from_its_packed_weights(classics, compress_random):
    recipe = Recipe(
        (
            Rule(kind=TensorKind.EMBEDDING, bits=8, group_size=32),
            Rule(name="*layers.0.mlp.up_proj.weight", bits=4, group_size=32),
        )
    )
    text = generate(compress_random(classics, recipe), PROMPT, tokens=4)
    assert text.startswith(PROMPT)
    assert len(text) > len(PROMPT)


def test_pieces_make_the_whole(classics):
    pieces = list(stream(classics, PROMPT, tokens=10))
    assert PROMPT + "".join(pieces) == generate(classics, PROMPT, tokens=10)
    assert 1 < len(pieces) <= 10


def test_it_stops_at_the_end_of_text(classics):
    words = tokenizer(classics)
    first = generate(classics, PROMPT, tokens=1, temperature=0)[len(PROMPT) :]
    end = words.encode(first, add_special_tokens=False).ids[0]
    ends = replace(classics, config={**classics.config, "eos_token_id": [end]})
    assert generate(ends, PROMPT, tokens=20, temperature=0) == PROMPT


def test_it_stops_at_the_end_of_the_context(classics):
    count = len(tokenizer(classics).encode(PROMPT, add_special_tokens=False).ids)
    short = replace(classics, config={**classics.config, "max_position_embeddings": count + 3})
    assert len(list(stream(short, PROMPT, tokens=50, temperature=0))) <= 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_options_out_of_range_are_refused(classics, options, reason):
    with pytest.raises(UsageError, match=reason):
        generate(classics, PROMPT, **options)


def test_an_empty_or_endless_prompt_is_refused(classics):
    with pytest.raises(SourceError, match="prompt is empty"):
        generate(classics, "")
    with pytest.raises(SourceError, match="fills the context of 512"):
        generate(classics, "evening " * 600)


def test_a_model_without_words_is_refused():
    captured = edgesparse.load(torch.nn.Linear(8, 8), example_inputs=torch.zeros(1, 8))
    with pytest.raises(UsageError, match="cannot continue a text"):
        generate(captured, PROMPT)
