"""Regular expressions of recipes: what people write is taken, what never ends is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.errors import RecipeError
from edgesparse.expressions import compiled
from edgesparse.recipe import Rule

NAME = "model.layers.17.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        (r".*down_proj$", False),
        (r"layers\.(1|17|2)\..*(q|k|v)_proj", True),
        (r"(?:model\.)?layers\.\d+\.", True),
        (r"(?P<x>self)_attn", True),
        (r"[(*+]+|q_proj", True),
        (r"\(\*\+\)", False),
        (r"layers\.\d{1,3}\.self.*?weight", True),
        (r"(model)+", True),
    ],
)
def test_what_names_are_chosen_by(expression: str, matches: bool) -> None:
    assert bool(compiled(expression).search(NAME)) is matches
    Rule(name=f"re:{expression}")


ENDLESS = (
    r"(a+)+$", r"(a|a)*$", r"((a|b)?)*$", r"(?:a*)*b", r"(.*)+x", r"((a){2,}){9}",
    "a?" * 30 + "a" * 30, "(a|a)" * 30 + "$", ".*" * 7 + "x", "a" * 501,
)  # fmt: skip


@pytest.mark.parametrize("expression", ENDLESS)
def test_what_could_take_for_ever_is_refused(expression: str) -> None:
    with pytest.raises(RecipeError, match=r"could take for ever to match: .*; write it simpler"):
        Rule(name=f"re:{expression}")


@pytest.mark.parametrize("expression", ["(", "a{2}{3}", "(?P<1>a)", "[", "*", "a" * 9 + "("])
def test_what_is_no_expression(expression: str) -> None:
    with pytest.raises(RecipeError, match="is no regular expression"):
        Rule(name=f"re:{expression}")


parts = st.sampled_from(
    ["a", "b", ".", ".*", "a+", "a?", "(a|b)", "(a|aa)", "(?:a|b)*", "(a+)?", "[ab]*", "a{1,9}",
     "(", ")", "|", "*", "$", r"\(", "(?:"]
)  # fmt: skip


@given(st.lists(parts, max_size=12).map("".join))
def test_what_is_taken_ends(expression: str) -> None:
    try:
        found = compiled(expression)
    except RecipeError:
        return
    found.search("a" * 60)  # what is wrong here would not come back
