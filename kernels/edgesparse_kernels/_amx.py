"""Matrix tiles (Intel AMX): sixteen rows of activations by sixteen rows of weights at once.

A tile register holds 16 rows of 64 bytes. Sixteen decoded cells, 64 columns of 16 rows of weights,
are the right operand as they lie there; 64 digits of sixteen rows of activations are the left one;
the sums are int32 [16 activations, 16 weights], so a row of them is what every other kernel keeps
as the sums of a tile. Groups of 32 columns take half of an operand. How tiles are shaped is state
of the thread: it is set for the time of a kernel, and what was there before is put back, as other
libraries trust theirs to stay.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import cache

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from edgesparse_kernels._simd import I8, I64, address, function

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

FEATURES = {"amx-tile", "amx-int8"}
ROWS = 16  # of activations that a tile takes
ACCUMULATORS = 4  # tiles of sums, registers 0 to 3: products that need not wait for each other

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_DIGITS, _LANES = 4, 5  # the registers of the operands
_STRIDE = 64  # bytes from row to row of sums and of lanes


def _shapes(cells: int) -> bytes:
    """Return palette 1: bytes a row, and rows, of the registers; operands of ``cells`` cells."""
    sums, digits, lanes = (64, ROWS), (4 * cells, ROWS), (64, cells)
    shapes = [sums] * ACCUMULATORS + [digits, lanes]
    widths, heights = zip(*shapes, strict=True)
    return struct.pack("<B15x6H20x6B10x", 1, *widths, *heights)


@cache
def is_permitted() -> bool:
    """Whether this process may use tiles: Linux saves their 8 KB only for those that ask."""
    if sys.platform != "linux":
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return bool(system.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def _do(builder, name, *values):
    """Call an LLVM intrinsic that returns nothing; the int64 0 because ours return something."""
    kinds = [value.type for value in values]
    builder.call(function(builder, f"llvm.x86.{name}", ir.VoidType(), *kinds), values)
    return ir.Constant(I64, 0)


def _pointer(builder, at):
    return builder.inttoptr(at, I8.as_pointer())


def _register(number):
    return ir.Constant(I8, number)


def _answer(isa, emit, *arguments):
    """Return what an intrinsic of (isa, ...) answers: its signature and ``emit``."""

    def generate(context, builder, _, values):
        return emit(builder, *values[1:])

    return types.int64(isa, *arguments), generate


@intrinsic
def begin_tiles(typing, isa, cells):
    """Shape this thread's tiles for operands of 8 or 16 cells.

    Returns what ``end_tiles`` needs to put back what was before.
    """

    def emit(builder, cells):
        kind = ir.ArrayType(I8, 64)
        before = builder.ptrtoint(cgutils.alloca_once(builder, kind), I64)
        _do(builder, "sttilecfg", _pointer(builder, before))
        half, whole = (
            cgutils.global_constant(
                builder, f"edgesparse_tiles_{count}", ir.Constant(kind, bytearray(_shapes(count)))
            )
            for count in (8, 16)
        )
        is_whole = builder.icmp_signed("==", cells, ir.Constant(I64, 16))
        shapes = builder.select(is_whole, whole, half)
        _do(builder, "ldtilecfg", builder.bitcast(shapes, I8.as_pointer()))
        return before

    return _answer(isa, emit, address)


@intrinsic
def end_tiles(typing, isa, before):
    """Put the shapes back that ``begin_tiles`` found."""

    def emit(builder, before):
        return _do(builder, "ldtilecfg", _pointer(builder, before))

    return _answer(isa, emit, address)


@intrinsic
def load_digits(typing, isa, at, width):
    """Take sixteen rows of ``width`` digits, one after the other, as the left operand."""

    def emit(builder, at, width):
        return _do(builder, "tileloadd64", _register(_DIGITS), _pointer(builder, at), width)

    return _answer(isa, emit, address, address)


@intrinsic
def load_cells(typing, isa, at):
    """Take decoded cells as the right operand."""

    def emit(builder, at):
        stride = ir.Constant(I64, _STRIDE)
        return _do(builder, "tileloadd64", _register(_LANES), _pointer(builder, at), stride)

    return _answer(isa, emit, address)


@intrinsic(prefer_literal=True)
def clear_sums(typing, isa, number):
    """Set the sums ``number``, a constant, to 0."""

    def emit(builder, _):
        return _do(builder, "tilezero", _register(number.literal_value))

    return _answer(isa, emit, number)


def _with_memory(name):
    """Return an intrinsic of (isa, number of sums, a constant, address of int32 [16, 16])."""

    @intrinsic(prefer_literal=True)
    def move(typing, isa, number, at):
        def emit(builder, _, at):
            sums, stride = _register(number.literal_value), ir.Constant(I64, _STRIDE)
            return _do(builder, name, sums, _pointer(builder, at), stride)

        return _answer(isa, emit, number, address)

    return move


load_sums, store_sums = _with_memory("tileloadd64"), _with_memory("tilestored64")


@intrinsic(prefer_literal=True)
def add_products(typing, isa, number):
    """Add the products of the operands, signed digits and unsigned lanes, to the sums."""

    def emit(builder, _):
        sums = _register(number.literal_value)
        return _do(builder, "tdpbsud", sums, _register(_DIGITS), _register(_LANES))

    return _answer(isa, emit, number)
