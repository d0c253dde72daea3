"""Patterns: which weights may stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.errors import RecipeError
from edgesparse.pattern import DENSE, Pattern

patterns = st.one_of(
    st.builds(Pattern, sparsity=st.floats(0, 1, exclude_max=True)),
    st.integers(1, 64).flatmap(
        lambda of: st.builds(Pattern, keep=st.integers(1, of), of=st.just(of))
    ),
    st.builds(
        Pattern,
        sparsity=st.floats(0, 1, exclude_max=True),
        block=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    ),
)


def test_n_of_m_fixes_the_sparsity():
    assert Pattern.parse("2:8").sparsity == 0.75
    assert Pattern.parse("2:4").n_of_m == (2, 4)
    assert Pattern.parse("2:4", sparsity=0.5) == Pattern(keep=2, of=4)
    with pytest.raises(RecipeError, match=r"fixes the sparsity at 0\.5"):
        Pattern.parse("2:4", sparsity=0.6)


def test_blocks_and_unstructured_take_the_sparsity():
    assert Pattern.parse("16x1", sparsity=0.5) == Pattern(sparsity=0.5, block=(16, 1))
    assert Pattern.parse("unstructured", sparsity=0.5) == Pattern(sparsity=0.5)


@pytest.mark.parametrize("text", ["", "2:", "2:4:8", "x4", "16*1", "half", "-1:4", "2.0:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(RecipeError, match="expected 'unstructured', N:M"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"sparsity": float("nan")},
        {"keep": 2},
        {"of": 4},
        {"keep": 0, "of": 4},
        {"keep": 5, "of": 4},
        {"keep": 1, "of": 65},
        {"keep": 2, "of": 4, "block": (4, 4)},
        {"sparsity": 0.5, "block": (0, 4)},
    ],
)
def test_contradictions_are_refused(fields):
    with pytest.raises(RecipeError):
        Pattern(**fields)


def test_n_of_n_removes_nothing():
    assert Pattern(keep=4, of=4).is_dense
    assert DENSE.is_dense
    assert not Pattern(keep=3, of=4).is_dense


@given(patterns)
def test_json_reads_back(pattern):
    assert Pattern.from_json(pattern.to_json()) == pattern


@given(patterns)
def test_text_reads_back(pattern):
    assert Pattern.parse(str(pattern), sparsity=pattern.sparsity) == pattern


@given(patterns, st.floats(0, 1, exclude_max=True))
def test_another_sparsity_keeps_the_blocks(pattern, sparsity):
    changed = pattern.with_sparsity(sparsity)
    assert (changed.sparsity, changed.block, changed.n_of_m) == (sparsity, pattern.block, None)


@pytest.mark.parametrize("data", [None, {}, {"keep": 2}, {"sparsity": "0.5", "block": [1, 1]}, []])
def test_json_that_is_no_pattern_is_refused(data):
    with pytest.raises(RecipeError, match="not a pattern"):
        Pattern.from_json(data)
