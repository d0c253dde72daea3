"""What threads that wait for each other need of the processor: one counter in memory."""

from __future__ import annotations

import sys

from llvmlite import ir
from llvmlite.binding import get_process_triple
from numba.core import cgutils

from edgesparse_kernels._simd import I32, I64, address, function, operation

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_PAUSES = {"x86_64": "llvm.x86.sse2.pause", "aarch64": "llvm.aarch64.hint"}
_GIVE_WAY = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


def _add(builder, at, more):
    return builder.atomic_rmw("add", builder.inttoptr(at, I64.as_pointer()), more, "seq_cst")


def _read(builder, at):
    return builder.load_atomic(builder.inttoptr(at, I64.as_pointer()), "acquire", 8)


def _pause(builder):
    """Let the other thread of the same core go first for some ten cycles."""
    machine = get_process_triple().split("-")[0].replace("arm64", "aarch64")
    name = _PAUSES.get(machine)
    if name:
        numbers = [ir.Constant(I32, 1)] if machine == "aarch64" else []  # the hint "yield"
        builder.call(function(builder, name, ir.VoidType(), *[I32 for _ in numbers]), numbers)
    return ir.Constant(I64, 0)


def _give_way(builder):
    kind = ir.FunctionType(I32, [])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, _GIVE_WAY), [])
    return ir.Constant(I64, 0)


add_at = operation(_add, address, address, address)  # to the int64 at an address, at once
read_at = operation(_read, address, address)  # and whatever was written before that value was
pause = operation(_pause, address)
give_way = operation(_give_way, address)  # to another thread that waits for this core
