"""Short phrases for values: what a plan does, how long something took, a number or a dash."""

from __future__ import annotations

from collections import Counter

from edgesparse.model import CapturedModel
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.recipe import Rule

NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with a fixed number of digits after the point, or a dash for None."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def error(value: float | None) -> str:
    """Return an error in scientific form, ``equal`` for an exact zero, or a dash for None."""
    if value is None:
        return NOTHING
    return "equal" if value == 0 else f"{value:.1e}"


def percent(fraction: float | None) -> str:
    """Return 0.779 as ``77.9 %``."""
    return NOTHING if fraction is None else f"{100 * fraction:.1f} %"


def seconds(value: float) -> str:
    """Return a duration as a person says it: ``4.2 s``, ``1 min 12 s``."""
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def millions(count: int) -> str:
    """Return a number of parameters with its usual unit: ``4.20 M``."""
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return str(count)


def rule_in_words(rule: Rule | None) -> str:
    """Return what a rule does to a tensor: ``50 % + 4-bit, g128``."""
    if rule is None:
        return "as it is"
    parts = []
    if not rule.pattern.is_dense:
        shape = "" if str(rule.pattern) == "unstructured" else f" {rule.pattern}"
        parts.append(f"{100 * rule.pattern.sparsity:.3g} %{shape}")
    if rule.bits == 16:
        return " + ".join([*parts, "float16"])
    if rule.scheme == "table":
        rows = f", {rule.table_rows} rows each" if rule.table_rows else ""
        return " + ".join([*parts, f"{rule.bits}-bit table"]) + rows
    group = f"g{rule.group_size}" if rule.group_size else "per row"
    group = "per tensor" if rule.one_scale else group
    scheme = "" if rule.scheme == "symmetric" else f" {rule.scheme}"
    return " + ".join([*parts, f"{rule.bits}-bit{scheme}"]) + f", {group}"


def plan_in_words(plan: Plan) -> str:
    """Return what most of a plan's weights get, with ``mixed`` when they differ."""
    weights: Counter[str] = Counter()
    for entry in _main_tensors(plan):
        weights[rule_in_words(entry.rule)] += entry.tensor.numel
    if not weights:
        return "as it is"
    main = weights.most_common(1)[0][0]
    return main if len(weights) == 1 else f"mixed, mostly {main}"


def _main_tensors(plan: Plan) -> list[TensorPlan]:
    """Return the planned tensors, without embeddings when there are others to speak of."""
    planned = [entry for entry in plan.tensors if entry.rule is not None]
    return [entry for entry in planned if entry.tensor.kind != "embedding"] or planned


def architecture(captured: CapturedModel) -> str:
    """Return what kind of model it is: its configuration's type, else where it came from."""
    name = captured.config.get("model_type")
    if isinstance(name, str) and name:
        return name[0].upper() + name[1:]
    return {"exported_program": "exported program", "reference": "PyTorch module"}.get(
        captured.source.kind, captured.source.kind
    )
