"""How the rows of a group are shared out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgesparse as es
from edgesparse.packed import FORMATS, FormatSpec
from edgesparse.pattern import DENSE
from edgesparse.shares import Share, Stacked, row_unit, share_out

TWO_OF_FOUR = es.Pattern(keep=2, of=4)
HALF = es.Pattern(sparsity=0.5)


def spec(pattern: es.Pattern) -> FormatSpec:
    name = "dense4" if pattern.is_dense else "bitmask4"
    return FORMATS.get(name).spec(group_size=16, pattern=pattern)


def test_queries_keys_and_values_are_one_stack_cut_in_two() -> None:
    group = {"q": Stacked(rows=64, unit=16), "k": Stacked(rows=16, unit=16),
             "v": Stacked(rows=16, unit=16)}  # fmt: skip
    assert share_out(group, 2, [0, 0]) == {
        "q": (Share(rank=0, begin=0, end=48), Share(rank=1, begin=48, end=64)),
        "k": (Share(rank=1, begin=0, end=16),),
        "v": (Share(rank=1, begin=0, end=16),),
    }


def test_matrices_that_cannot_be_cut_are_dealt_out_whole() -> None:
    group = {"q": Stacked(rows=64, unit=None), "k": Stacked(rows=16, unit=None),
             "v": Stacked(rows=16, unit=16)}  # fmt: skip
    shares = share_out(group, 2, [0, 0])
    assert {name: share.rank for name, (share,) in shares.items()} == {"q": 0, "k": 1, "v": 1}
    ((lone,),) = share_out({"o": Stacked(rows=8, unit=None)}, 2, [100, 99]).values()
    assert lone == Share(rank=1, begin=0, end=8)  # who has had less to do


matrices = st.dictionaries(
    st.text("abc", min_size=1),
    st.builds(Stacked, rows=st.integers(0, 3000), unit=st.sampled_from([16, 48, 64])),
    min_size=1,
)


@given(matrices, st.integers(1, 9))
def test_every_row_is_solved_once_and_no_one_has_much_more(
    group: dict[str, Stacked], size: int
) -> None:
    shares = share_out(group, size, [0] * size)
    load: Counter[int] = Counter()
    for name, matrix in group.items():
        own = shares[name]
        assert [s.begin for s in own] == [0, *(s.end for s in own[:-1])]
        assert own[-1].end == matrix.rows
        for share in own:
            assert 0 <= share.rank < size
            load[share.rank] += share.end - share.begin
    total, largest = sum(m.rows for m in group.values()), max(m.rows for m in group.values())
    if size > 1:
        assert max(load.values()) <= total / size + 2 * (largest / 8 + 64)


@pytest.mark.parametrize(
    ("rule", "columns", "expected"),
    [
        (es.Rule(pattern=TWO_OF_FOUR, method="sparsegpt"), 33, 16),
        (es.Rule(pattern=TWO_OF_FOUR, method="admm"), 33, 16),
        (es.Rule(pattern=HALF, method="wanda", quantizer="rtn"), 32, 16),
        (es.Rule(pattern=es.Pattern(sparsity=0.3), method="wanda"), 33, None),
        (es.Rule(pattern=HALF, method="sparsegpt"), 32, None),  # the whole matrix competes
        (es.Rule(pattern=HALF, method="magnitude"), 32, None),
        (es.Rule(pattern=es.Pattern(sparsity=0.5, block=(16, 1)), method="wanda"), 32, None),
        (es.Rule(bits=4), 32, 16),
    ],
)
def test_what_may_be_cut(rule: es.Rule, columns: int, expected: int | None) -> None:
    assert row_unit(rule, spec(rule.pattern), columns) == expected


def test_one_process_cuts_only_what_is_not_factorized_again_for_every_part() -> None:
    by_hand = {
        es.Rule(pattern=TWO_OF_FOUR, method="wanda", quantizer="rtn"): 16,
        es.Rule(pattern=TWO_OF_FOUR, method="wanda", quantizer="gptq"): None,
        es.Rule(pattern=TWO_OF_FOUR, method="sparsegpt", bits=16): None,
        es.Rule(pattern=TWO_OF_FOUR, method="admm", quantizer="rtn"): None,
        es.Rule(bits=4, quantizer="rtn", method="sparsegpt"): 16,  # nothing is pruned
        es.Rule(bits=4, quantizer="gptq"): None,
        es.Rule(pattern=HALF, method="magnitude", quantizer="rtn"): None,  # all rows compete
    }
    for rule, expected in by_hand.items():
        assert row_unit(rule, spec(rule.pattern), 32, factorizes=False) == expected


def test_rows_of_one_table_stay_together() -> None:
    rule = es.Rule(bits=4)
    one = FORMATS.get("dense4").spec(pattern=DENSE, scheme="table", group_size=0)
    assert row_unit(rule, one, 32) is None
    assert row_unit(rule, replace(one, table_rows=24), 32) == 48
