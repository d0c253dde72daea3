"""Plans and format specs out of a stranger's JSON.

The layout is that of ``Plan.to_json``; every value is checked, which a plan file of the user's own
does not need.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgesparse.budget import Budget
from edgesparse.errors import EdgesparseError
from edgesparse.model import TensorInfo
from edgesparse.packed import SYMMETRIC, FormatSpec
from edgesparse.pattern import Pattern
from edgesparse.planner.types import MemoryTerm, Plan, TensorPlan
from edgesparse.recipe import PER_TENSOR, Recipe, Rule
from edgesparse.store.fields import Fields


def spec_from_json(fields: Fields) -> FormatSpec:
    """Read the form ``FormatSpec.to_json`` writes; without a scheme it is symmetric.

    Raises:
        CorruptPack: Anything else.
    """
    try:
        return FormatSpec(
            name=fields.text("name"),
            version=fields.integer("version"),
            bits=fields.integer("bits"),
            group_size=fields.integer("group_size"),
            pattern=Pattern.from_json(fields.raw("pattern")),
            scale_dtype=fields.text("scale_dtype"),
            scheme=fields.optional_text("scheme") or SYMMETRIC,
            table_rows=fields.optional_integer("table_rows") or 0,
        )
    except EdgesparseError as error:
        raise fields.wrong(str(error)) from None


def plan_from_json(fields: Fields, tensors: Mapping[str, TensorInfo], *, depth: int = 0) -> Plan:
    """Read the form ``Plan.to_json`` writes.

    Args:
        fields: The JSON object.
        tensors: The tensors a plan may speak about, by name.
        depth: How many plans this one is the alternative of.

    Raises:
        CorruptPack: Anything else, or a tensor that is not in ``tensors``.
    """
    alternative = fields.optional_object("dense_alternative")
    if alternative is not None and depth:
        raise fields.wrong("the alternative has an alternative of its own")
    limits = fields.object("budget")
    entries = tuple(_tensor_from_json(entry, tensors) for entry in fields.objects("tensors"))
    return Plan(
        tensors=entries,
        nbytes=fields.integer("nbytes"),
        budget=_budget(limits),
        target=fields.optional_text("target"),
        artifact_nbytes=fields.optional_integer("artifact_nbytes"),
        memory=tuple(
            MemoryTerm(
                name=term.text("name"), nbytes=term.integer("nbytes"), basis=term.text("basis")
            )
            for term in fields.objects("memory")
        ),
        download_nbytes=fields.optional_integer("download_nbytes"),
        latency_ns=fields.optional_integer("latency_ns"),
        latency_of=fields.optional_text("latency_of"),
        options=_options(fields),
        loss=fields.optional_number("loss") or 0.0,
        notes=fields.texts("notes"),
        dense_alternative=None
        if alternative is None
        else plan_from_json(alternative, tensors, depth=depth + 1),
    )


def _options(fields: Fields) -> dict[str, str | int | bool]:
    """Return the options of an export; plans from before there were any have none."""
    options = {} if fields.optional_object("options") is None else fields.raw("options")
    if not all(isinstance(value, str | int | bool) for value in options.values()):
        raise fields.wrong("an option that is neither text, a whole number, nor true or false")
    return options


def _budget(limits: Fields) -> Budget:
    try:
        return Budget(
            file=limits.optional_integer("file"),
            download=limits.optional_integer("download"),
            peak=limits.optional_integer("peak"),
            latency=limits.optional_integer("latency"),
            context=limits.optional_integer("context"),
        )
    except EdgesparseError as error:
        raise limits.wrong(str(error)) from None


def _tensor_from_json(fields: Fields, tensors: Mapping[str, TensorInfo]) -> TensorPlan:
    name = fields.object("tensor").text("name")
    if name not in tensors:
        raise fields.wrong(f"the model has no tensor {name[:80]!r}")
    spec, rule = fields.optional_object("spec"), _rule(fields)
    if (rule is None) != (spec is None):
        raise fields.wrong("a rule without a spec, or a spec without a rule")
    return TensorPlan(
        tensor=tensors[name],
        rule=rule,
        spec=None if spec is None else spec_from_json(spec),
        nbytes=fields.integer("nbytes"),
        reason=fields.text("reason"),
    )


def _rule(fields: Fields) -> Rule | None:
    rule = fields.optional_object("rule")
    if rule is None:
        return None
    rule.text("pattern"), rule.text("method"), rule.text("quantizer")
    rule.integer("bits"), rule.optional_number("sparsity")
    if fields.raw("rule").get("group_size") != PER_TENSOR:
        rule.optional_integer("group_size")
    rule.optional_integer("table_rows")
    rule.optional_text("scheme")
    match = rule.object("match")
    match.optional_text("name"), match.optional_text("kind")
    try:
        return Recipe.from_json([fields.raw("rule")]).rules[0]
    except EdgesparseError as error:
        raise rule.wrong(str(error)) from None
