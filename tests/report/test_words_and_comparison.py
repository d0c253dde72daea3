"""What tables and hints say, from numbers made up here."""

from __future__ import annotations

import pytest

from edgesparse.pattern import Pattern
from edgesparse.recipe import Rule
from edgesparse.report.comparison import Comparison, Measured, hints
from edgesparse.report.tables import comparison_cells, comparison_headers
from edgesparse.report.words import error, number, percent, rule_in_words, seconds
from edgesparse.runtime import Evaluation


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (None, "as it is"),
        (Rule(), "float16"),
        (Rule(bits=3, group_size=0), "3-bit, per row"),
        (Rule(pattern=Pattern(sparsity=0.5), bits=4), "50 % + 4-bit, g128"),
        (Rule(pattern=Pattern(keep=2, of=4), bits=16), "50 % 2:4 + float16"),
        (
            Rule(pattern=Pattern(sparsity=0.7, block=(16, 1)), bits=4, group_size=32),
            "70 % 16x1 + 4-bit, g32",
        ),
    ],
)
def test_a_rule_in_words(rule: Rule | None, words: str) -> None:
    assert rule_in_words(rule) == words


def test_numbers_in_words() -> None:
    assert (number(None), number(1234.5, 1)) == ("–", "1,234.5")
    assert (error(None), error(0.0), error(0.00012)) == ("–", "equal", "1.2e-04")
    assert percent(0.7791) == "77.9 %"
    assert (seconds(4.2), seconds(72.9)) == ("4.2 s", "1 min 12 s")


def measured(label: str, kl: float | None, **values: float) -> Measured:
    evaluation = Evaluation(nbytes=1000, bits_per_weight=4.0, windows=1, kl=kl, **values)  # type: ignore[arg-type]
    return Measured(label=label, evaluation=evaluation)


def comparison(mine: float, other: float | None) -> Comparison:
    return Comparison(
        dense=measured("dense, float16", 0.0, perplexity=30.0, dense_perplexity=30.0),
        compressed=measured("this plan: 50 %", mine, perplexity=36.0, dense_perplexity=30.0),
        alternative=None
        if other is None
        else measured("equal bytes: 3-bit", other, perplexity=33.0, dense_perplexity=30.0),
        measured_on="some text",
    )


def test_the_closer_one_is_named_also_when_it_is_the_other() -> None:
    found = comparison(0.17, 0.06)
    assert found.better is found.alternative
    (hint,) = hints(found)
    assert "3-bit" in hint
    assert "KL 0.06 against 0.17" in hint


def test_a_plan_that_wins_gets_no_lecture() -> None:
    found = comparison(0.05, 0.06)
    assert found.better is found.compressed
    assert hints(found) == []
    assert hints(comparison(0.05, None)) == []


def test_the_dense_row_has_no_distance_to_itself() -> None:
    found = comparison(0.17, 0.06)
    assert len(comparison_headers(found)) == 6
    assert comparison_cells(found, found.dense)[-2:] == ["–", "–"]
    assert comparison_cells(found, found.compressed)[2:4] == ["36.00", "1.200"]


def test_a_comparison_travels_as_json() -> None:
    found = comparison(0.17, None)
    assert Comparison.from_json(found.to_json()) == found
    assert Comparison.from_json(comparison(0.17, 0.06).to_json()).alternative is not None
