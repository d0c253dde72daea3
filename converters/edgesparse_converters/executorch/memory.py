"""What a program needs to run, from the file alone.

    flatbuffer   the graph, read from the mapped file
    constants    weights our operators and the runtime's kernels use in place from the mapped file:
                 clean pages, which a system may drop
    arena        activations, inputs and outputs, planned ahead; methods that share a cache share
                 this too, as long as the longest of them needs, zeroed whichever is loaded
    cache        keys and values, and whatever else a program keeps between calls
    delegates    XNNPACK repacks its weights into memory of its own when a method is loaded
    scratch      the largest set of values between operators of one delegate
    graph        what the runtime makes of the graph: values, tensors, calls, delegates' runtimes
    loading      weights as they are in the file while XNNPACK repacks them, as far as they exceed
                 what comes later: scratch and most of the runtime
    runtime      code that is touched and threads, whatever the program

XNNPACK pads outputs to multiples of 16; a packed filter of O outputs and K inputs takes, with O
padded, O (K / 2 + 2 K / g + 8) bytes for 4-bit groups of g, O (K / 2 + 12) for 4-bit rows,
O (K + 12) for 8-bit rows and 4 O (K + 1) for float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgesparse.planner.peak import RUNTIMES
from edgesparse_converters.executorch.program import Program
from edgesparse_converters.executorch.xnnpack import Filter, filters_by_delegate, graphs

# Measured around programs of 2 to 111 MB, with our operators, and with XNNPACK in 4 and 32 bits:
# with these the dirty memory of five programs is within 2 % of what the system counts.
_VALUE_NBYTES = 200
_DELEGATE_NBYTES = 5_500
_FILTER_NBYTES = 7_400  # XNNPACK's operator around a weight
_LOADER_NBYTES = 700_000  # of the runtime's code, touched before anything is computed


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
    loading: int
    runtime: int

    @property
    def dirty(self) -> int:
        """Memory that belongs to the process alone: what a phone counts against an app."""
        return self.arena + self.cache + self.delegates + self.scratch + self.graph

    @property
    def peak(self) -> int:
        """Everything resident at once, the file's used pages and the runtime included."""
        return self.flatbuffer + self.constants + self.dirty + self.loading + self.runtime


def memory_of(program: Program, method: str = "forward") -> Memory:
    """Return what one method of a program needs."""
    plan = program.methods[method]
    arenas = [planned["non_const_buffer_sizes"][1:] for planned in program.methods.values()]
    own = plan["non_const_buffer_sizes"][1:]
    shared = [of[0] for of in arenas if len(of) > 1]
    delegates = [_weights_of(of) for of in filters_by_delegate(program, method)]
    scratch = max((_scratch(graph) for graph in graphs(program, method)), default=0)
    runtime = RUNTIMES["executorch"].empty_nbytes
    return Memory(
        flatbuffer=program.flatbuffer_nbytes,
        constants=program.constants_nbytes,
        arena=max(shared) if len(own) > 1 else sum(own),
        cache=sum(own[1:]),
        delegates=sum(of.repacked for of in delegates),
        scratch=scratch,
        graph=_VALUE_NBYTES * len(plan["values"])
        + _DELEGATE_NBYTES * len(plan["delegates"])
        + _FILTER_NBYTES * sum(of.filters for of in delegates),
        loading=max(0, _loading(delegates) - scratch - (runtime - _LOADER_NBYTES)),
        runtime=runtime,
    )


class _Weights(NamedTuple):
    """The weights of one delegate: how many, their bytes in the file, and repacked."""

    filters: int
    written: int
    repacked: int


def _weights_of(delegate: Iterable[Filter]) -> _Weights:
    # One at a time: read back, they are larger than in the file and in memory.
    sizes = [(weight.nbytes, repacked_nbytes(weight)) for weight in delegate]
    return _Weights(len(sizes), sum(size for size, _ in sizes), sum(size for _, size in sizes))


def _loading(delegates: Sequence[_Weights]) -> int:
    """Return what repacking takes at its highest beyond all that was repacked in the end.

    Delegates are repacked one after the other, and each has its bytes of the file beside it.
    """
    later, highest = sum(of.repacked for of in delegates), 0
    for of in delegates:
        later -= of.repacked
        highest = max(highest, of.written - later)
    return highest


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
