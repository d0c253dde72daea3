"""Tokenizers from strangers: what the Rust library raises, its panics too, is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesparse.errors import SourceError
from edgesparse.runtime.text import read_tokenizer, token_ids

tokenizers = pytest.importorskip("tokenizers")


class PanicException(BaseException):  # as pyo3 names it: no Exception
    pass


class Spoken:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encode(self, text: str, *, add_special_tokens: bool) -> None:
        raise self._error


@pytest.mark.parametrize("error", [Exception("no such token"), PanicException("out of range")])
def test_a_tokenizer_that_contradicts_itself(error: BaseException) -> None:
    with pytest.raises(SourceError, match=f"tokenizer.json is damaged: {error}"):
        token_ids(Spoken(error), "the cat")  # type: ignore[arg-type]


def test_an_interrupt_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        token_ids(Spoken(KeyboardInterrupt()), "the cat")  # type: ignore[arg-type]


def test_an_unknown_token_without_a_word_for_it(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0}, unk_token="?"))
    made.save(str(tmp_path / "tokenizer.json"))
    spoken = read_tokenizer(tmp_path / "tokenizer.json")
    assert token_ids(spoken, "cat") == [0]
    with pytest.raises(SourceError, match=r"tokenizer\.json is damaged"):
        token_ids(spoken, "dog")
