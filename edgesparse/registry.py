"""Registries: visible tables of ``name -> "module:attribute"``, loaded on first use.

Third parties add rows with an entry point of the group ``edgesparse.<kind>`` or by ``register``.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from edgesparse.errors import UnknownName, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """One extension point.

    Args:
        kind: What the rows are, singular; also the entry-point group ``edgesparse.<kind>``.
        rows: The built-in rows, ``name -> "module:attribute"``.
    """

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self._rows: dict[str, str] = dict(rows)
        self._loaded: dict[str, T] = {}
        self._entry_points_read = False

    def __iter__(self) -> Iterator[str]:
        self._read_entry_points()
        return iter(sorted({*self._rows, *self._loaded}))

    def __contains__(self, name: str) -> bool:
        return name in set(self)

    def register(self, name: str, value: T) -> None:
        """Add one row for this process.

        Raises:
            UsageError: The name is taken; nothing is replaced silently.
        """
        if name in self:
            raise UsageError(f"{self.kind} {name!r} is already registered; choose another name")
        self._loaded[name] = value

    def get(self, name: str) -> T:
        """Return the row ``name``, importing its module on first use.

        Raises:
            UnknownName: No such row; the message lists the known ones and the nearest.
        """
        self._read_entry_points()
        if name not in self._loaded:
            if name not in self._rows:
                raise UnknownName(self._unknown(name))
            module, _, attribute = self._rows[name].partition(":")
            self._loaded[name] = cast(T, getattr(importlib.import_module(module), attribute))
        return self._loaded[name]

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown {self.kind} {name!r}; known: {', '.join(self)}{hint}"

    def _read_entry_points(self) -> None:
        if self._entry_points_read:
            return
        self._entry_points_read = True
        for point in entry_points(group=f"edgesparse.{self.kind}"):
            if point.name in self._rows:
                raise UsageError(
                    f"{self.kind} {point.name!r} is registered twice: by edgesparse and by "
                    f"{point.value}; uninstall or rename one"
                )
            self._rows[point.name] = point.value
