"""Texts, tokens and sums around a file that speaks; the file is a table of next tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from edgesparse import executing
from edgesparse.errors import SourceError, Unsupported, UsageError
from edgesparse.exporting import EXPORTERS

WORDS = {"a": 0, "b": 1, "c": 2, "end": 3}


class Table:
    """After a comes b, after b comes c, after c the end, each nine times as likely as the rest."""

    context = 6
    end_tokens = frozenset([3])

    def __init__(self) -> None:
        self.read_so_far: list[int] = []

    def reset(self) -> None:
        self.read_so_far = []

    def read(self, tokens: np.ndarray) -> np.ndarray:
        self.read_so_far += tokens.tolist()
        assert len(self.read_so_far) <= self.context
        logits = np.zeros((len(tokens), 4), np.float32)
        logits[np.arange(len(tokens)), (tokens + 1) % 4] = math.log(9)
        return logits


class Dumb:
    suffix, accepts, packages, extra = ".dumb", frozenset[str](), (), "dumb"
    export = validate = predict_nbytes = inspect = run = None


class Row(Dumb):
    suffix = ".table"

    @contextmanager
    def open_language_model(self, path: Path) -> Iterator[Table]:
        yield Table()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = {"table": Row(), "dumb": Dumb()}
    monkeypatch.setattr(EXPORTERS, "get", rows.__getitem__)
    monkeypatch.setattr(type(EXPORTERS), "__iter__", lambda self: iter(rows))
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="end"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in ("model.table", "model.dumb"):
        (tmp_path / name).touch()
    (tmp_path / "text.txt").write_text("a b c a c c b", encoding="utf-8")
    return tmp_path


def test_perplexity_by_hand(folder: Path) -> None:
    """Windows a b c | a c c: b and c are foreseen (9 of 12), of a c c neither (1 of 12)."""
    found = executing.score_text(folder / "model.table", folder / "text.txt", window=3)
    assert (found.windows, found.tokens) == (2, 4)
    expected = math.exp((2 * math.log(12 / 9) + 2 * math.log(12)) / 4)
    assert found.perplexity == pytest.approx(expected, rel=1e-6)
    one = executing.score_text(folder / "model.table", folder / "text.txt", window=3, max_windows=1)
    assert one.perplexity == pytest.approx(12 / 9, rel=1e-6)


def test_the_likeliest_continuation_ends_where_the_text_does(folder: Path) -> None:
    pieces = executing.stream_text(folder / "model.table", "a", temperature=0)
    assert "".join(pieces).split() == ["b", "c"]


def test_the_context_ends_a_continuation(folder: Path) -> None:
    pieces = executing.stream_text(folder / "model.table", "c c c c a", temperature=0)
    assert "".join(pieces).split() == ["b"]
    with pytest.raises(SourceError, match="fills the context of 6"):
        list(executing.stream_text(folder / "model.table", "a a a a a a", temperature=0))


def test_a_window_must_fit(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"a window of 7 tokens; model.table reads 2 to 6"):
        executing.score_text(folder / "model.table", folder / "text.txt", window=7)


def test_abilities_a_target_does_not_have_are_named(folder: Path) -> None:
    with pytest.raises(Unsupported, match="files of dumb cannot read text on this host"):
        executing.score_text(folder / "model.dumb", folder / "text.txt")
    with pytest.raises(Unsupported, match="files of table cannot be timed on this host"):
        executing.measure(folder / "model.table")
    with pytest.raises(UsageError, match="both begin at 1"):
        executing.measure(folder / "model.table", runs=0)


def test_where_a_tokenizer_is_looked_for(folder: Path, tmp_path: Path) -> None:
    beside = folder / "tokenizer.json"
    own = folder / "model" / "tokenizer.json"
    own.parent.mkdir()
    beside.rename(own)
    assert executing.find_tokenizer(folder / "model.table", None).get_vocab_size() == 4
    assert executing.find_tokenizer(folder / "x.table", own.parent).get_vocab_size() == 4
    with pytest.raises(SourceError, match=r"holds no tokenizer.*--source DIR"):
        executing.find_tokenizer(folder / "x.table", None)
