"""What ``inspect`` found in a file, as tables: any nesting of mappings, lists and values.

Exporters return contents as JSON has them; what they mean is theirs, how they look is here.
Consecutive plain values share a table, a list of mappings becomes one with a column for each key, a
mapping of mappings becomes a section for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from edgesparse.budget import format_size
from edgesparse.report.tables import columns
from edgesparse.report.words import NOTHING

_SIZES = frozenset({"nbytes", "bytes", "memory", "arenas"})
"""Keys whose numbers are bytes, also those of the mapping or list under them."""


def contents_tables(
    contents: Mapping[str, Any], *, limit: int | None = None
) -> Iterable[RenderableType]:
    """Return what to print, from the outermost key inwards.

    Args:
        contents: What an exporter's ``inspect`` returned.
        limit: Rows of a list to show; None shows all.
    """
    yield from _section("", contents, sizes=False, limit=limit)


def _section(
    title: str, values: Mapping[str, Any], *, sizes: bool, limit: int | None
) -> Iterable[RenderableType]:
    plain = {key: value for key, value in values.items() if _is_plain(value)}
    if plain:
        if title:
            yield Text(title, style="bold")
        table = columns("", "", left=1 if sizes else 2)
        for key, value in plain.items():
            table.add_row(key, Text(_words(value, sizes=sizes or key in _SIZES)))
        yield from (table, "")
    for key, value in values.items():
        below = f"{title} · {key}" if title else key
        if isinstance(value, Mapping):
            yield from _section(below, value, sizes=sizes or key in _SIZES, limit=limit)
        elif not _is_plain(value):
            yield from _rows(below, value, limit=limit)


def _rows(title: str, rows: Sequence[Any], *, limit: int | None) -> Iterable[RenderableType]:
    """A list of mappings as a table; any other list as one line for each item."""
    yield Text(title, style="bold")
    mappings = all(isinstance(row, Mapping) for row in rows)
    keys = list(dict.fromkeys(key for row in rows for key in row)) if mappings else [""]
    numeric = [mappings and all(_is_number(row.get(key)) for row in rows) for key in keys]
    table = columns(*keys, left=0)
    for column, right in zip(table.columns, numeric, strict=True):
        column.justify = "right" if right else "left"
    for row in rows[:limit]:
        cells = [row.get(key) for key in keys] if mappings else [row]
        table.add_row(
            *(Text(_words(c, sizes=k in _SIZES)) for k, c in zip(keys, cells, strict=True))
        )
    yield table
    if limit is not None and len(rows) > limit:
        yield Text(f"{len(rows) - limit} more; --all shows them", style="dim")
    yield ""


def _is_plain(value: Any) -> bool:
    """Whether a value fits one cell: no mapping, and no list but a short one of numbers."""
    if isinstance(value, list | tuple):
        return all(_is_number(item) for item in value)
    return not isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _words(value: Any, *, sizes: bool) -> str:
    """Return one cell: a size in its unit, a shape with crosses, a dash for nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, list | tuple):
        between = ", " if sizes else "×"
        return between.join(_words(item, sizes=sizes) for item in value) or NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_size(value) if sizes else f"{value:,}" if value > 9999 else str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
