"""What a file holds, as tables: values together, lists as rows, sections for what is nested."""

from __future__ import annotations

import io

from rich.console import Console

from edgesparse.report.contents import contents_tables

CONTENTS = {
    "nbytes": 1_949_056,
    "written_by": "edgesparse",
    "memory": {"arena": 322_624, "peak": None},
    "methods": {"forward": {"calls": 163, "inputs": [{"name": "ids", "shape": [1, 16]}]}},
    "weights": [
        {"name": "a", "nbytes": 2048, "sparsity": 0.5},
        {"name": "b [x]", "nbytes": 64},
        {"name": "c", "nbytes": 1},
    ],
    "operators": ["add", "mul"],
}


def printed(limit: int | None = None) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=200, markup=False, highlight=False)
    for part in contents_tables(CONTENTS, limit=limit):
        console.print(part)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_sizes_have_units_and_counts_none() -> None:
    lines = printed()
    assert "nbytes       1.95 MB" in lines
    assert "arena   323 kB" in lines
    assert "peak         –" in lines
    assert "calls   163" in lines


def test_a_section_is_named_by_the_way_to_it() -> None:
    lines = printed()
    at = lines.index("methods · forward · inputs")
    assert lines[at + 1 : at + 3] == ["name   shape", "ids    1×16"]
    assert "methods" not in lines  # nothing but sections in it


def test_a_list_of_mappings_has_a_column_for_each_key() -> None:
    lines = printed()
    at = lines.index("weights")
    assert lines[at + 1].split() == ["name", "nbytes", "sparsity"]
    assert lines[at + 2].split() == ["a", "2.05", "kB", "0.5"]
    assert lines[at + 3].split() == ["b", "[x]", "64", "B", "–"]  # names are data, not markup


def test_what_is_left_out_is_counted() -> None:
    lines = printed(limit=1)
    assert "2 more; --all shows them" in lines
    assert "mul" not in lines
