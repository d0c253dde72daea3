"""Matrix tiles (Intel AMX): sixteen rows of activations by sixteen rows of weights at once.

A tile register holds 16 rows of 64 bytes. Sixteen decoded cells, 64 columns of 16 rows of weights,
are the right operand as they lie there; 64 digits of sixteen rows of activations are the left one;
the sums are int32 [16 activations, 16 weights], so a row of them is what every other kernel keeps
as the sums of a tile. How tiles are shaped is state of the thread: it is set for the time of a
kernel, and what was there before is put back, as other libraries trust theirs to stay.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import cache

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import I8, I64, address, function

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

FEATURES = {"amx-tile", "amx-int8"}
ROWS = 16  # of activations that a tile takes
CELLS = 16  # of weights that a tile takes

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_SUMS, _DIGITS, _LANES = range(3)  # the tile registers
# Palette 1; 64 bytes a row and 16 rows for each of the three.
_SHAPES = struct.pack("<B15x3H26x3B13x", 1, 64, 64, 64, 16, 16, 16)


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


def _nothing(builder, *_):
    return ir.Constant(I64, 0)


def _with_tiles(emit):
    """Return what makes an intrinsic: the same where there are no tiles, but doing nothing."""

    def answer(isa, *arguments):
        chosen = emit if isa.has_tiles else _nothing

        def generate(context, builder, _, values):
            return chosen(builder, *values[1:])

        return types.int64(isa, *arguments), generate

    return answer


@_with_tiles
def _begin(builder):
    """Keep the thread's shapes aside and set ours; return the address of what was kept."""
    aside = cgutils.alloca_once(builder, ir.ArrayType(I8, 64))
    before = builder.ptrtoint(aside, I64)
    kind = ir.ArrayType(I8, 64)
    shapes = cgutils.global_constant(
        builder, "edgesparse_tile_shapes", ir.Constant(kind, bytearray(_SHAPES))
    )
    _do(builder, "sttilecfg", _pointer(builder, before))
    _do(builder, "ldtilecfg", builder.bitcast(shapes, I8.as_pointer()))
    return before


@_with_tiles
def _end(builder, before):
    return _do(builder, "ldtilecfg", _pointer(builder, before))


@_with_tiles
def _load_sums(builder, at):
    return _do(
        builder, "tileloadd64", _register(_SUMS), _pointer(builder, at), ir.Constant(I64, 64)
    )


@_with_tiles
def _store_sums(builder, at):
    return _do(
        builder, "tilestored64", _register(_SUMS), _pointer(builder, at), ir.Constant(I64, 64)
    )


@_with_tiles
def _multiply(builder, digits, stride, lanes):
    """Add the products of signed digits, rows ``stride`` bytes apart, and unsigned lanes."""
    _do(builder, "tileloadd64", _register(_DIGITS), _pointer(builder, digits), stride)
    _do(builder, "tileloadd64", _register(_LANES), _pointer(builder, lanes), ir.Constant(I64, 64))
    return _do(builder, "tdpbsud", _register(_SUMS), _register(_DIGITS), _register(_LANES))


@intrinsic
def has_tiles(typing, isa):
    """Whether the instruction set has tiles; known when a kernel is compiled."""

    def generate(context, builder, _, values):
        return ir.Constant(ir.IntType(1), int(isa.has_tiles))

    return types.boolean(isa), generate


@intrinsic
def begin_tiles(typing, isa):
    """Shape this thread's tiles; return what ``end_tiles`` needs to put back what was before."""
    return _begin(isa)


@intrinsic
def end_tiles(typing, isa, before):
    """Put the shapes back that ``begin_tiles`` found."""
    return _end(isa, address)


@intrinsic
def _load(typing, isa, at):
    return _load_sums(isa, address)


@intrinsic
def _store(typing, isa, at):
    return _store_sums(isa, address)


@intrinsic
def _add_product(typing, isa, digits, stride, lanes):
    return _multiply(isa, address, address, address)


@jit
def tile_products(isa, lanes, count, x, stride, rows, totals):
    """Add the products of decoded quads and whole sixteens of rows of digits to ``totals``.

    Returns how many rows were done; none where there are no tiles, or no whole tiles of quads.
    """
    if not has_tiles(isa) or count % CELLS:
        return 0
    whole = rows // ROWS * ROWS
    for row in range(0, whole, ROWS):
        _load(isa, totals + 64 * row)
        for cell in range(0, count, CELLS):
            _add_product(isa, x + row * stride + 4 * cell, stride, lanes + 64 * cell)
        _store(isa, totals + 64 * row)
    return whole
