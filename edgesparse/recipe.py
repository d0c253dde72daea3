"""Recipes: ordered rules, first match wins; what no rule matches stays as it is."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgesparse.errors import RecipeError
from edgesparse.expressions import compiled
from edgesparse.model import TensorInfo, TensorKind
from edgesparse.packed import ALL_BITS, SCHEMES, SYMMETRIC, TABLE, scheme_bits
from edgesparse.pattern import DENSE, Pattern

ADJUSTABLE = frozenset({"bits", "group_size", "sparsity"})
OPENABLE = ADJUSTABLE | {"pattern"}
PER_ROW = "channel"
"""A recipe file's word for ``group_size = 0``."""
PER_TENSOR = "tensor"
"""A recipe file's word for ``group_size = 0`` and ``one_scale``."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to do with the tensors it matches.

    Attributes:
        kind: Match tensors of this kind, also given as its word, ``"linear"``; None matches all.
        name: Match names: a glob, or a regular expression after ``re:``; None matches all.
        pattern: Which weights may stay.
        method: Row of the pruner registry; used when the pattern is not dense.
        bits: 2, 3, 4 or 8 for codes with scales, 16 for float16 values.
        group_size: Columns per scale; 0 is one scale per row, and so is -1, or ``channel`` in a
            recipe file. Not looked at with a table.
        one_scale: One scale, and one zero, for the whole tensor: ``group_size = "tensor"`` in a
            recipe file. It is stored once a row.
        quantizer: Row of the quantizer registry; used when bits < 16.
        scheme: What codes mean: ``symmetric`` is code · scale, ``asymmetric`` is
            (code - zero) · scale, ``table`` any 4, 8 or 16 float16 values.
        table_rows: Rows, output channels, that share a table; 0 is one table for the tensor.
        adjustable: Which of ``bits``, ``group_size`` and ``sparsity`` the planner may change to
            meet a budget: those nobody asked for. In a recipe file, the keys left out. And
            ``pattern``, only if it is named: the shape of the mask.
    """

    kind: TensorKind | None = None
    name: str | None = None
    pattern: Pattern = DENSE
    method: str = "sparsegpt"
    bits: int = 16
    group_size: int = 128
    quantizer: str = "gptq"
    scheme: str = SYMMETRIC
    table_rows: int = 0
    one_scale: bool = False
    adjustable: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.kind is not None:
            object.__setattr__(self, "kind", _kind(self.kind))
        if unknown := sorted(self.adjustable - OPENABLE):
            raise RecipeError(
                f"adjustable names {unknown[0]!r}; known: {', '.join(sorted(OPENABLE))}"
            )
        if self.bits not in ALL_BITS:
            raise RecipeError(f"bits is {self.bits}, expected one of {ALL_BITS}")
        self._check_scheme()
        if self.group_size == -1:
            object.__setattr__(self, "group_size", 0)
        if self.one_scale and (self.group_size or self.scheme == TABLE):
            raise RecipeError(
                f"one scale for the tensor with group_size {self.group_size} and scheme "
                f"{self.scheme}; expected group_size 0 and codes that have scales"
            )
        if self.one_scale:
            object.__setattr__(self, "adjustable", self.adjustable - {"group_size"})
        if self.group_size and (self.group_size < 8 or self.group_size % 8):
            raise RecipeError(
                f"group_size is {self.group_size}, expected a multiple of 8, or 0 for one scale "
                "per row"
            )
        if self.name is not None and self.name.startswith("re:"):
            compiled(self.name[3:])

    def _check_scheme(self) -> None:
        """Check that the scheme is one, and goes with the bits."""
        if self.scheme not in SCHEMES:
            raise RecipeError(f"scheme is {self.scheme!r}, expected one of {', '.join(SCHEMES)}")
        if self.bits not in scheme_bits(self.scheme):
            raise RecipeError(
                f"scheme {self.scheme} with {self.bits} bits, expected bits to be one of "
                f"{scheme_bits(self.scheme)}"
            )
        if self.table_rows < 0 or (self.table_rows and self.scheme != TABLE):
            raise RecipeError(
                f"table_rows is {self.table_rows} with scheme {self.scheme}; expected rows per "
                "table with scheme table, or 0"
            )

    def matches(self, tensor: TensorInfo) -> bool:
        """Whether the rule speaks about ``tensor``, under any of its names."""
        if self.kind is not None and self.kind != tensor.kind:
            return False
        if self.name is None:
            return True
        names = (tensor.name, *tensor.aliases)
        if self.name.startswith("re:"):
            expression = compiled(self.name[3:])
            return any(expression.search(name) for name in names)
        return any(fnmatch.fnmatchcase(name, self.name) for name in names)


@dataclass(frozen=True)
class Recipe:
    """Ordered rules; the first that matches a tensor decides.

    Attributes:
        rules: The rules.
        allocation: How the layers share the sparsity once the model is calibrated: ``uniform`` (as
            the rules say) or a row of ``planner.sharing.ALLOCATIONS``.

    Example:
        >>> recipe = Recipe((Rule(kind=TensorKind.LINEAR, bits=4),))
        >>> recipe.rules[0].group_size
        128
    """

    rules: tuple[Rule, ...] = ()
    allocation: str = "uniform"

    def rule_for(self, tensor: TensorInfo) -> Rule | None:
        """Return the first rule that matches, or None: the tensor stays as it is."""
        return next((rule for rule in self.rules if rule.matches(tensor)), None)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file of ``[[rule]]`` tables, and ``allocation`` above them.

        Raises:
            RecipeError: No such file, not TOML, or a key that no rule has.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{path} is not TOML: {error}") from None
        rules, allocation = data.pop("rule", []), data.pop("allocation", cls.allocation)
        if data or not isinstance(rules, list):
            raise RecipeError(f"{path}: expected only [[rule]] tables, found {sorted(data)}")
        if not isinstance(allocation, str):
            raise RecipeError(f"{path}: allocation is {allocation!r}, expected a name")
        read = (_rule(table, f"{path}, rule {i + 1}") for i, table in enumerate(rules))
        return cls(tuple(read), allocation)

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> Recipe:
        """Read the form ``to_json`` writes."""
        return cls(tuple(_rule(dict(table), f"rule {i + 1}") for i, table in enumerate(data)))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON form: the same keys as a recipe file's."""
        return [rule_to_json(rule) for rule in self.rules]


def group_fields(value: int | str) -> dict[str, Any]:
    """Return the fields of a rule for a group size: a number, ``channel`` or ``tensor``."""
    if value == PER_TENSOR:
        return {"group_size": 0, "one_scale": True}
    return {"group_size": 0 if value == PER_ROW else value}


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """Return the keys a recipe file would have for ``rule``."""
    match = {"kind": rule.kind and rule.kind.value, "name": rule.name}
    group_size = PER_TENSOR if rule.one_scale else rule.group_size
    numbers: dict[str, Any] = {} if rule.scheme == TABLE else {"group_size": group_size}
    if rule.scheme != SYMMETRIC:
        numbers["scheme"] = rule.scheme
    if rule.table_rows:
        numbers["table_rows"] = rule.table_rows
    return {
        "match": {key: value for key, value in match.items() if value is not None},
        "pattern": str(rule.pattern),
        "sparsity": rule.pattern.sparsity,
        "method": rule.method,
        "bits": rule.bits,
        **numbers,
        "quantizer": rule.quantizer,
        "adjustable": sorted(rule.adjustable),
    }


def _kind(word: str) -> TensorKind:
    """Return the kind of that name.

    Raises:
        RecipeError: There is none.
    """
    try:
        return TensorKind(word)
    except ValueError:
        known = ", ".join(kind.value for kind in TensorKind)
        raise RecipeError(f"kind is {word!r}, expected one of {known}") from None


_OPTIONS = {field.name for field in fields(Rule)} - {"kind", "name", "pattern", "one_scale"}


def _rule(table: Any, where: str) -> Rule:
    """Read one ``[[rule]]`` table; ``where`` begins the message when it is wrong."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where}: expected a table, found {table!r}")
    table = dict(table)
    given = {"sparsity" if key == "pattern" else key for key in table}
    match, adjustable = table.pop("match", {}), table.pop("adjustable", ADJUSTABLE - given)
    pattern, sparsity = table.pop("pattern", "unstructured"), table.pop("sparsity", 0.0)
    if not isinstance(match, dict):
        raise RecipeError(f"{where}: match is {match!r}, expected {{ kind = …, name = … }}")
    unknown = sorted(set(table) - _OPTIONS) + sorted(set(match) - {"kind", "name"})
    if unknown:
        known = ", ".join(sorted({"match", "pattern", "sparsity", *_OPTIONS}))
        raise RecipeError(f"{where}: unknown key {unknown[0]!r}; known: {known}")
    if table.get("scheme") == TABLE and "group_size" in table:
        raise RecipeError(
            f"{where}: a table has no group_size; say how many rows share one with table_rows"
        )
    if "group_size" in table:
        table |= group_fields(table["group_size"])
    try:
        return Rule(
            kind=_kind(match["kind"]) if "kind" in match else None,
            name=match.get("name"),
            pattern=Pattern.parse(pattern, sparsity=float(sparsity)),
            adjustable=frozenset(adjustable),
            **table,
        )
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except (OverflowError, TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from None
