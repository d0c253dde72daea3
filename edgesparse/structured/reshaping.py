"""What a reshape does to labelled axes.

Neighbouring axes are matched into the smallest blocks of equal size. Within a block one axis may be
split, or several merged:

    [.., heads·width]  →  [.., heads, width]    a label for every head, its positions joined
    [.., heads, width] →  [.., heads·width]     the head's label for all its positions
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from edgesparse.structured.labels import Axis, Labels

Axes = tuple[Axis | None, ...]


def reshape(labels: Labels, axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes:
    """Return the labels of a value's axes after a reshape; what gets mixed is closed."""
    result: list[Axis | None] = [None] * len(after)
    for old, new in _blocks(before, after):
        found = [dim for dim in old if axes[dim] is not None and before[dim] > 1]
        sizes = [after[dim] for dim in new]
        if not found:
            continue
        block = math.prod(before[dim] for dim in old)
        for dim in found[1:]:  # two labelled axes in one: neither can be told apart any more
            _close(labels, axes[dim])
        axis = axes[found[0]]
        assert axis is not None
        if len(found) > 1 or block == 0:
            _close(labels, axis)
            continue
        inner = math.prod(before[dim] for dim in old if dim > found[0])
        outer = math.prod(before[dim] for dim in old if dim < found[0])
        grid = np.tile(np.repeat(axis, inner), outer).reshape(sizes)
        place = next((i for i, size in enumerate(sizes) if size > 1), None)
        if place is None:
            continue
        rows = grid.reshape(math.prod(sizes[:place]) * sizes[place], -1)
        labels.join_within(rows)
        result[new[place]] = rows[:, 0].copy()
        if outer > 1 and len(sizes) > 1:
            _close(labels, axis)
            result[new[place]] = None
    return tuple(result)


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the axes of both sides that make up the same stretch of memory."""
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [i] if i < len(before) else [], [j] if j < len(after) else []
        left = before[i] if old else 1
        right = after[j] if new else 1
        while left != right:
            if left < right:
                i += 1
                if i >= len(before):
                    return
                old.append(i)
                left *= before[i]
            else:
                j += 1
                if j >= len(after):
                    return
                new.append(j)
                right *= after[j]
        i, j = i + 1, j + 1
        yield old, new


def _close(labels: Labels, axis: Axis | None) -> None:
    if axis is not None:
        labels.mark("closed", axis)
