"""What a program needs to run, from the file alone.

    flatbuffer   the graph, read from the mapped file
    constants    weights our operators and the runtime's kernels use in place from the mapped file:
                 clean pages, which a system may drop
    arena        activations, inputs and outputs, planned ahead
    cache        keys and values, and whatever else a program keeps between calls
    delegates    XNNPACK repacks its weights into memory of its own when a method is loaded
    scratch      the largest set of values between operators of one delegate
    graph        what the runtime makes of the graph: values, tensors, calls, delegates' runtimes
    runtime      code that is touched and threads, whatever the program

XNNPACK pads outputs to multiples of 16; a packed filter of O outputs and K inputs takes, with O
padded, O (K / 2 + 2 K / g + 8) bytes for 4-bit groups of g, O (K / 2 + 12) for 4-bit rows,
O (K + 12) for 8-bit rows and 4 O (K + 1) for float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgesparse.planner.peak import RUNTIMES
from edgesparse_converters.executorch.program import Program
from edgesparse_converters.executorch.xnnpack import Filter, filters, graphs

# Measured around programs of 2 to 16 MB with our operators and with XNNPACK.
_VALUE_NBYTES = 200
_DELEGATE_NBYTES = 10_000


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes a program needs, for one method loaded; see the module."""

    flatbuffer: int
    constants: int
    arena: int
    cache: int
    delegates: int
    scratch: int
    graph: int
    runtime: int

    @property
    def dirty(self) -> int:
        """Memory that belongs to the process alone: what a phone counts against an app."""
        return self.arena + self.cache + self.delegates + self.scratch + self.graph

    @property
    def peak(self) -> int:
        """Everything resident at once, the file's used pages and the runtime included."""
        return self.flatbuffer + self.constants + self.dirty + self.runtime


def memory_of(program: Program, method: str = "forward") -> Memory:
    """Return what one method of a program needs."""
    plan = program.methods[method]
    arenas = plan["non_const_buffer_sizes"][1:]
    return Memory(
        flatbuffer=program.flatbuffer_nbytes,
        constants=program.constants_nbytes,
        arena=sum(arenas[:1]),
        cache=sum(arenas[1:]),
        delegates=sum(repacked_nbytes(weight) for weight in filters(program, method)),
        scratch=max((_scratch(graph) for graph in graphs(program, method)), default=0),
        graph=_VALUE_NBYTES * len(plan["values"]) + _DELEGATE_NBYTES * len(plan["delegates"]),
        runtime=RUNTIMES["executorch"].empty_nbytes,
    )


def repacked_nbytes(weight: Filter) -> int:
    """Return the bytes of a filter as XNNPACK keeps it in memory."""
    rows: int = -(-weight.shape[0] // 16) * 16
    columns: int = math.prod(weight.shape[1:])
    if weight.datatype == "qbint4":
        groups: int = weight.scales.shape[1]
        return rows * (columns // 2 + 2 * groups + 8)
    if weight.datatype == "qcint4":
        return rows * (columns // 2 + 12)
    return rows * (columns + 12) if weight.datatype == "qcint8" else 4 * rows * (columns + 1)


def _scratch(graph: dict[str, Any]) -> int:
    """Return the bytes of values that are neither constants nor inputs or outputs."""
    total = 0
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
        internal = tensor["external_id"] == 0xFFFFFFFF and not tensor["constant_buffer_idx"]
        if internal:
            width = 1 if "int8" in tensor["datatype"] else 4
            total += width * math.prod(tensor["dims"])
    return total
