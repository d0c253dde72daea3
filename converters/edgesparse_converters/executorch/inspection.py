"""What is in a program, as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgesparse_converters.executorch.memory import memory_of
from edgesparse_converters.executorch.metadata import read_metadata
from edgesparse_converters.executorch.program import COREML_BACKEND, Program


def inspect(program: Program) -> dict[str, Any]:
    """Return methods (inputs, outputs, arenas, delegates), operators, and bytes by place."""
    metadata = read_metadata(program)
    return {
        "nbytes": program.nbytes,
        "bytes": {
            "flatbuffer": program.flatbuffer_nbytes,
            "constants": program.constants_nbytes,
            "delegate data": sum(len(data) for data in program.named.values()),
            "delegates": sum(
                len(data) for name in program.methods for _, data in program.delegates(name)
            ),
        },
        "written_by": f"edgesparse {metadata.version}" if metadata.version else "",
        "methods": {
            name: _method(program, name)
            for name, plan in program.methods.items()
            if _computes(plan)
        },
        "operators": list(program.operators),
        "lowering": {name: form.value for name, form in (metadata.forms or {}).items()},
    }


def _computes(plan: dict[str, Any]) -> bool:
    """Whether a method does something, rather than return a constant."""
    return any(chain["instructions"] for chain in plan["chains"])


def _method(program: Program, name: str) -> dict[str, Any]:
    plan = program.methods[name]
    metadata = read_metadata(program)
    delegates: dict[str, int] = {}
    for backend, _ in program.delegates(name):
        delegates[backend] = delegates.get(backend, 0) + 1
    return {
        "inputs": _tensors(plan, plan["inputs"], metadata.inputs),
        "outputs": _tensors(plan, plan["outputs"], metadata.outputs),
        "arenas": plan["non_const_buffer_sizes"][1:],
        "delegates": delegates,
        # What a Core ML delegate takes is the system's own affair.
        "memory": {} if COREML_BACKEND in delegates else _memory(program, name),
        "kernel_calls": sum(1 for _ in program.kernel_uses(name)),
    }


def _memory(program: Program, name: str) -> dict[str, int]:
    memory = memory_of(program, name)
    return {**asdict(memory), "dirty": memory.dirty, "peak": memory.peak}


def _tensors(
    plan: dict[str, Any], indices: list[int], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    found = [plan["values"][index] for index in indices]
    if len(names) != len(found):
        names = tuple(f"{i}" for i in range(len(found)))
    return [
        {
            "name": name,
            "dtype": value["val"].get("scalar_type", value["val_type"]).lower(),
            "shape": value["val"].get("sizes", []),
        }
        for name, value in zip(names, found, strict=True)
    ]
