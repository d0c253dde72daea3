"""Labels of positions along an axis: positions with one label can only be cut together.

A disjoint-set forest over integers, in arrays: an axis of a tensor is an int64 array with one label
for each position. Joining two axes makes position i of both one; closing says that something
happens to a position after which it cannot be cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Axis = NDArray[np.int64]


class Labels:
    """The forest, and what is known of every label.

    Marks are sets of labels under a name: ``closed``, ``attention`` (a unit is a head with what
    shares its keys), ``normalized`` (a norm takes its mean over the positions, so that a cut
    changes what the others become).
    """

    def __init__(self) -> None:
        self._parent = np.zeros(0, np.int64)
        self._marks: dict[str, list[Axis]] = {}

    def new(self, size: int) -> Axis:
        """Return an axis of ``size`` positions, each on its own."""
        start = len(self._parent)
        fresh = np.arange(start, start + size, dtype=np.int64)
        self._parent = np.concatenate([self._parent, fresh])
        return fresh

    def roots(self, axis: Axis) -> Axis:
        """Return for every position the label that stands for all that are joined with it."""
        found = self._parent[axis]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                return found
            found = above

    def join(self, first: Axis, second: Axis) -> None:
        """Make position i of both axes one, for all i."""
        a, b = self.roots(first), self.roots(second)
        pairs = np.unique(np.stack([a[a != b], b[a != b]], axis=1), axis=0)
        for one, other in pairs.tolist():
            low, high = sorted((self._root(one), self._root(other)))
            self._parent[high] = low

    def join_within(self, axis: Axis) -> None:
        """Make all positions of every row of ``axis`` [units, positions] one."""
        if axis.shape[1] > 1:
            first = np.repeat(axis[:, :1], axis.shape[1] - 1, axis=1)
            self.join(first.reshape(-1), axis[:, 1:].reshape(-1))

    def mark(self, what: str, axis: Axis) -> None:
        """Add the labels of ``axis`` to a set."""
        self._marks.setdefault(what, []).append(np.unique(axis))

    def marked(self, what: str) -> frozenset[int]:
        """Return the roots of a set."""
        parts = self._marks.get(what, [])
        return frozenset(self.roots(np.concatenate(parts)).tolist()) if parts else frozenset()

    def _root(self, label: int) -> int:
        while (above := int(self._parent[label])) != label:
            label = above
        return label
