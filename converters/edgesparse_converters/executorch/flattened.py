"""A folder flattened to one run of bytes, as a Core ML delegate holds its package.

    the bytes of every file, one after the other | a list of nodes as JSON, written backwards

The JSON stands backwards so that a reader that knows only the end finds where it begins. A node is
a file (``kind`` 0) with its place in the bytes, or a folder (1) with the indices of what is in it;
the last one is the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgesparse.errors import SourceError

MAX_INDEX_NBYTES = 1 << 20
_FILE, _FOLDER = 0, 1


def unflatten(data: memoryview, folder: Path, *, name: str) -> None:
    """Write the files of a flattened folder into ``folder``, which exists.

    Nothing is written outside of it, and no more than ``data`` holds.

    Args:
        data: The bytes.
        folder: Where to.
        name: What the bytes are of, for the message.

    Raises:
        SourceError: They are damaged.
    """
    try:
        nodes, nbytes = _nodes(data)
        files = list(_files(nodes))
        places = [_place(node, nbytes) for _, node in files]
        if sum(place.stop - place.start for place in places) > nbytes:
            raise ValueError("its files overlap")
        for (path, _), place in zip(files, places, strict=True):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("xb") as file:
                file.write(data[place])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError,
            OSError) as error:  # fmt: skip
        raise SourceError(f"{name}: its folder of files is damaged: {error}") from None


def _nodes(data: memoryview) -> tuple[list[dict[str, Any]], int]:
    """Return the list at the end of the bytes, and how many bytes there are before it."""
    backwards = bytes(data[-MAX_INDEX_NBYTES:])[::-1].decode("latin-1")
    found, length = json.JSONDecoder().raw_decode(backwards)
    nodes: list[dict[str, Any]] = found["nodes"]
    if not isinstance(nodes, list) or not nodes:
        raise ValueError("it lists no files")
    return nodes, len(data) - length


def _files(nodes: list[dict[str, Any]]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every file below the last node with its path."""
    waiting, seen = [(Path(), len(nodes) - 1)], set()
    while waiting:
        path, index = waiting.pop()
        if type(index) is not int or not 0 <= index < len(nodes) or index in seen:
            raise ValueError(f"{path} is node {index!r}, which is none or elsewhere too")
        seen.add(index)
        node = nodes[index]
        if node["kind"] == _FILE:
            yield path, node
            continue
        if node["kind"] != _FOLDER:
            raise ValueError(f"{path} is of kind {node['kind']!r}")
        for name, child in node["children"].items():
            if name in ("", ".", "..") or set(name) & set("/\\\0:"):
                raise ValueError(f"a file named {name!r}")
            waiting.append((path / name, child))


def _place(node: dict[str, Any], nbytes: int) -> slice:
    start, size = node["dataRegion"]["offset"], node["dataRegion"]["size"]
    if type(start) is not int or type(size) is not int or not 0 <= start <= start + size <= nbytes:
        raise ValueError(f"a file at {start}..{start}+{size} of {nbytes} bytes")
    return slice(start, start + size)
