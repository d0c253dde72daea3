"""The tables of a program checked once, so that whatever reads them may trust their shape.

A damaged flatbuffer may parse and still have a list missing or an index that leads nowhere.
"""

from __future__ import annotations

from typing import Any

_LISTS = (
    "values", "inputs", "outputs", "chains", "operators", "delegates", "non_const_buffer_sizes",
)  # fmt: skip


def check_tables(parsed: dict[str, Any]) -> None:
    """Fill in lists that are not there, and refuse what leads nowhere.

    Args:
        parsed: A program's flatbuffer as JSON values; lists that flatc left out are added.

    Raises:
        ValueError: A table without a part that every program has, or an index out of range.
    """
    _require(parsed, "execution_plan", list)
    segments = parsed.setdefault("segments", [])
    for segment in _mappings(segments):
        _require(segment, "offset", int)
        _require(segment, "size", int)
    constants = parsed.setdefault("constant_segment", {"segment_index": 0, "offsets": []})
    for key, kind in (("segment_index", int), ("offsets", list)):
        _require(constants, key, kind)
    for plan in _mappings(parsed["execution_plan"]):
        _check_plan(plan)


def _check_plan(plan: dict[str, Any]) -> None:
    _require(plan, "name", str)
    for key in _LISTS:
        plan.setdefault(key, [])
        _require(plan, key, list)
    for value in _mappings(plan["values"]):
        value.setdefault("val", {})
        _require(value, "val", dict)
        _require(value, "val_type", str)
        if value["val_type"] == "Tensor":
            value["val"].setdefault("sizes", [])
            for key, kind in (("sizes", list), ("scalar_type", str), ("data_buffer_idx", int)):
                _require(value["val"], key, kind)
    for operator in _mappings(plan["operators"]):
        for key in ("name", "overload"):
            operator.setdefault(key, "")
    for delegate in _mappings(plan["delegates"]):
        _require(delegate, "id", str)
        _require(delegate, "processed", dict)
    _check_indices([*plan["inputs"], *plan["outputs"]], plan["values"])
    for chain in _mappings(plan["chains"]):
        for instruction in _mappings(chain.setdefault("instructions", [])):
            _check_instruction(instruction, plan)


def _check_instruction(instruction: dict[str, Any], plan: dict[str, Any]) -> None:
    _require(instruction, "instr_args_type", str)
    kind, called = instruction["instr_args_type"], instruction.get("instr_args") or {}
    target = {
        "KernelCall": ("op_index", "operators"),
        "DelegateCall": ("delegate_index", "delegates"),
    }
    if kind in target:
        key, among = target[kind]
        _require(called, key, int)
        _check_indices([called[key]], plan[among])
        _check_indices(called.setdefault("args", []), plan["values"])


def _require(table: Any, key: str, kind: type) -> None:
    if not isinstance(table, dict) or not isinstance(table.get(key), kind):
        raise ValueError(f"a table without {key}")


def _mappings(items: Any) -> list[dict[str, Any]]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError("a list of tables with something else in it")
    return items


def _check_indices(indices: Any, among: list[Any]) -> None:
    for index in indices:
        if type(index) is not int or not 0 <= index < len(among):
            raise ValueError(f"index {index!r} of {len(among)}")
