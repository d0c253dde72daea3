"""Instruction sets: which one is used, and the four operations that differ between them.

An ``InstructionSet`` is passed to a kernel as an argument; its numba type names the set, so one
source compiles, and is cached, once for each.

    expand(isa, at, mask)             64 lanes: the next byte where the mask is set, 0 elsewhere
    dot(isa, sums, lanes, digits)     sums[r] += lanes[4 r + c] * digits[c], lanes unsigned < 16
    dot_bytes(isa, sums, lanes, ...)  likewise, lanes of any unsigned byte
    expand_low, expand_high           the same, and of each byte the nibble as ``code + 8``
    low_float, high_float             those codes as floats
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

from edgesparse_kernels import _amx
from edgesparse_kernels._simd import (
    FLOATS,
    I1,
    I8,
    I16,
    I32,
    I64,
    LANES,
    SUMS,
    address,
    broadcast,
    f32x16,
    function,
    i8x64,
    i32x16,
    int32,
    load_as,
    pick,
    splat,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"


@dataclass(frozen=True)
class InstructionSet:
    """A set of instructions kernels can be compiled for."""

    name: str


GENERIC, AVX2, AVX512, AMX = (InstructionSet(name) for name in ("generic", "avx2", "avx512", "amx"))
_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vbmi2", "avx512vnni"}
_NEEDS = {
    AMX: _AVX512 | _amx.FEATURES,
    AVX512: _AVX512,
    AVX2: {"avx2", "fma", "f16c", "popcnt"},
    GENERIC: set[str](),
}


@cache
def available() -> tuple[InstructionSet, ...]:
    """Return the instruction sets numba may use here, the best first."""
    if numba.config.CPU_FEATURES is not None:
        features = {f[1:] for f in numba.config.CPU_FEATURES.split(",") if f.startswith("+")}
    elif numba.config.CPU_NAME is not None:
        features = set()  # numba compiles for a processor we know nothing of
    else:
        host = llvmlite.binding.get_host_cpu_features()
        features = {name for name, present in host.items() if present}
    found = [isa for isa, needs in _NEEDS.items() if needs <= features]
    return tuple(isa for isa in found if isa is not AMX or _amx.is_permitted())


def best() -> InstructionSet:
    """Return the set to use; ``EDGESPARSE_ISA=avx2``, say, asks for a lesser one.

    Raises:
        ValueError: The set asked for is not one this processor has.
    """
    asked = os.environ.get("EDGESPARSE_ISA", available()[0].name)
    for isa in available():
        if isa.name == asked:
            return isa
    known = ", ".join(isa.name for isa in available())
    raise ValueError(f"EDGESPARSE_ISA={asked!r}: this processor has {known}")


class IsaType(types.Type):
    """The numba type of one instruction set.

    Attributes:
        isa: Its vectors: AMX is AVX-512 and tiles beside.
        has_tiles: Whether it has those.
    """

    def __init__(self, name: str) -> None:
        self._of = name
        self.has_tiles = name == "amx"
        self.isa = "avx512" if self.has_tiles else name
        super().__init__(name=f"isa({name})")

    def __reduce__(self) -> tuple[type[IsaType], tuple[str]]:
        return IsaType, (self._of,)


@typeof_impl.register(InstructionSet)
def _typeof(value, context):
    return IsaType(value.name)


register_model(IsaType)(models.OpaqueModel)


@unbox(IsaType)
def _unbox(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


@intrinsic
def expand(typing, isa, at, mask):
    """Lane l: the next byte from ``at`` on if bit l of ``mask`` is set, else 0."""
    return i8x64(isa, address, address), _without_isa(_EXPAND[isa.isa])


@intrinsic
def expand_low(typing, isa, at, mask):
    """``code + 8`` of the low nibbles of the expanded bytes."""
    emit = _expand_low_avx512 if isa.isa == "avx512" else _then(_EXPAND[isa.isa], _low)
    return i8x64(isa, address, address), _without_isa(emit)


@intrinsic
def expand_high(typing, isa, at, mask):
    """What ``high_lanes`` gives, of the expanded bytes."""
    emit = _expand_high_avx512 if isa.isa == "avx512" else _then(_EXPAND[isa.isa], _high)
    return i8x64(isa, address, address), _without_isa(emit)


@intrinsic
def dot(typing, isa, sums, lanes, digits):
    """Add the products of four unsigned lanes below 16 and the four bytes of ``digits``."""
    emit = {"avx512": _dot_avx512, "avx2": _dot_avx2, "generic": _dot_generic}[isa.isa]
    return i32x16(isa, i32x16, i8x64, int32), _without_isa(emit)


@intrinsic
def dot_bytes(typing, isa, sums, lanes, digits):
    """Add the products of four unsigned lanes and the four bytes of ``digits``."""
    emit = {"avx512": _dot_avx512}.get(isa.isa, _dot_generic)
    return i32x16(isa, i32x16, i8x64, int32), _without_isa(emit)


@intrinsic
def high_lanes(typing, isa, lanes):
    """High nibbles as ``code + 8``, or 16 times that where products cannot overflow."""
    emit = _high_16 if isa.isa == "avx512" else _high
    return i8x64(isa, i8x64), _without_isa(emit)


@intrinsic
def high_sums(typing, isa, sums):
    """Sums of products of ``high_lanes`` as sums of products of codes."""
    emit = _sixteenth if isa.isa == "avx512" else _same
    return i32x16(isa, i32x16), _without_isa(emit)


@intrinsic
def low_float(typing, isa, words, column):
    """Codes of one column as floats, from words of four lanes of ``low_nibbles``."""
    emit = _code_float_avx512(0) if isa.isa == "avx512" else _code_float
    return f32x16(isa, i32x16, address), _without_isa(emit)


@intrinsic
def high_float(typing, isa, words, column):
    """Likewise from words of four ``high_lanes``."""
    emit = _code_float_avx512(4) if isa.isa == "avx512" else _code_float
    return f32x16(isa, i32x16, address), _without_isa(emit)


def _without_isa(emit):
    def generate(context, builder, signature, values):
        return emit(builder, *values[1:])

    return generate


def _then(first, second):
    return lambda builder, *values: second(builder, first(builder, *values))


def _expand_lanes(builder, lanes, fill, mask):
    bits = ir.VectorType(I1, 64)
    callee = function(builder, "llvm.x86.avx512.mask.expand.v64i8", LANES, LANES, LANES, bits)
    return builder.call(callee, [lanes, splat(LANES, fill), builder.bitcast(mask, bits)])


def _expand_avx512(builder, at, mask):
    return _expand_lanes(builder, load_as(builder, at, LANES), 0, mask)


# Nibbles are taken before the bytes are expanded: LLVM would else fold the load into the expand,
# and from memory that instruction takes longer than a load and an expand do.
def _expand_low_avx512(builder, at, mask):
    return _expand_lanes(builder, _low(builder, load_as(builder, at, LANES)), 8, mask)


def _expand_high_avx512(builder, at, mask):
    return _expand_lanes(builder, _high_16(builder, load_as(builder, at, LANES)), 0x80, mask)


def _expand_generic(builder, at, mask):
    bits = ir.VectorType(I1, 64)
    kind = ir.FunctionType(LANES, [I8.as_pointer(), bits, LANES])
    callee = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.expandload.v64i8")
    pointer = builder.inttoptr(at, I8.as_pointer())
    return builder.call(callee, [pointer, builder.bitcast(mask, bits), splat(LANES, 0)])


def _shuffle_tables() -> bytes:
    """Return two tables of 256 entries of 16 bytes, which places 16 lanes take their codes from.

    Byte i of entry m of the first is, for i below 8, which of the next codes lane i takes under
    mask m, 0x80 for none; its other bytes are how many codes the eight lanes take. Byte 8 + i of
    the second is as byte i of the first, its bytes below 8 are 0. So the sum of an entry of each
    is the order of 16 lanes.
    """
    tables = np.full((2, 256, 16), 0x80, np.uint8)
    tables[1, :, :8] = 0
    for mask in range(256):
        kept = np.array([lane for lane in range(8) if mask >> lane & 1], np.intp)
        tables[0, mask, kept] = tables[1, mask, 8 + kept] = np.arange(len(kept))
        tables[0, mask, 8:] = len(kept)
    return tables.tobytes()


def _tables(builder: ir.IRBuilder) -> tuple[Any, Any]:
    """Return the addresses of the shuffle tables, constants of the module being built."""
    words = np.frombuffer(_shuffle_tables(), np.uint64)
    kind = ir.ArrayType(I64, len(words))
    name = "edgesparse_shuffle_tables"
    variable = builder.module.globals.get(name)
    if variable is None:
        variable = ir.GlobalVariable(builder.module, kind, name)
        variable.linkage, variable.global_constant, variable.align = "internal", True, 64
        variable.initializer = ir.Constant(kind, [int(word) for word in words])
    first = builder.ptrtoint(variable, I64)
    return first, builder.add(first, ir.Constant(I64, 4096))


def _expand_avx2(builder, at, mask):
    """Sixteen bytes at a time through tables of shuffles, as AVX2 has no expand."""
    sixteen, half = ir.VectorType(I8, 16), ir.VectorType(I8, 32)
    both = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
    tables = _tables(builder)

    def field(shift, bits):
        moved = builder.lshr(mask, ir.Constant(I64, shift)) if shift else mask
        return builder.and_(moved, ir.Constant(I64, (1 << bits) - 1))

    def entries(table, shift):
        """Entries by the mask's bytes at ``shift`` and two bytes on, one in each half."""
        chosen = (field(each, 8) for each in (shift, shift + 16))
        places = (builder.add(table, builder.shl(one, ir.Constant(I64, 4))) for one in chosen)
        return builder.shuffle_vector(*(load_as(builder, at, sixteen) for at in places), both)

    halves = []
    for low in (0, 32):
        order = builder.add(entries(tables[0], low), entries(tables[1], low + 8))
        codes = []
        for shift in (low, low + 16):
            codes.append(load_as(builder, at, sixteen))
            taken = builder.call(function(builder, "llvm.ctpop.i64", I64, I64), [field(shift, 16)])
            at = builder.add(at, taken)
        shuffle = function(builder, "llvm.x86.avx2.pshuf.b", half, half, half)
        bytes_ = builder.shuffle_vector(*codes, both)
        halves.append(builder.call(shuffle, [bytes_, order]))
    return builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(I32, 64), list(range(64))))


def _dot_avx512(builder, sums, lanes, digits):
    callee = function(builder, "llvm.x86.avx512.vpdpbusd.512", SUMS, SUMS, LANES, LANES)
    four = builder.bitcast(broadcast(builder, digits, SUMS), LANES)
    return builder.call(callee, [sums, lanes, four])


def _dot_avx2(builder, sums, lanes, digits):
    """Pairs of products of lanes below 16 fit in 16 bits: 2 * 15 * 128 < 32768."""
    half, words, eight = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
    bytes_ = function(builder, "llvm.x86.avx2.pmadd.ub.sw", words, half, half)
    pairs = function(builder, "llvm.x86.avx2.pmadd.wd", eight, words, words)
    four = builder.bitcast(broadcast(builder, digits, eight), half)
    parts = []
    for begin in (0, 32):
        part = pick(builder, lanes, range(begin, begin + 32))
        parts.append(builder.call(pairs, [builder.call(bytes_, [part, four]), splat(words, 1)]))
    order = ir.Constant(ir.VectorType(I32, 16), list(range(16)))
    return builder.add(sums, builder.shuffle_vector(*parts, order))


def _dot_generic(builder, sums, lanes, digits):
    """Lanes and digits widened, multiplied and added column by column."""
    for c in range(4):
        column = builder.zext(pick(builder, lanes, range(c, 64, 4)), SUMS)
        digit = builder.ashr(
            builder.shl(digits, ir.Constant(I32, 24 - 8 * c)), ir.Constant(I32, 24)
        )
        sums = builder.add(sums, builder.mul(column, broadcast(builder, digit, SUMS)))
    return sums


def _low(builder, lanes):
    return builder.xor(builder.and_(lanes, splat(LANES, 15)), splat(LANES, 8))


def _high_16(builder, lanes):
    return builder.xor(builder.and_(lanes, splat(LANES, 0xF0)), splat(LANES, 0x80))


def _high(builder, lanes):
    shifted = builder.lshr(
        builder.bitcast(lanes, ir.VectorType(I16, 32)), splat(ir.VectorType(I16, 32), 4)
    )
    low = builder.and_(builder.bitcast(shifted, LANES), splat(LANES, 15))
    return builder.xor(low, splat(LANES, 8))


def _sixteenth(builder, sums):
    return builder.ashr(sums, splat(SUMS, 4))


def _same(builder, sums):
    return sums


def _bit_of_column(builder, column, bit):
    shift = builder.add(builder.shl(column, ir.Constant(I64, 3)), ir.Constant(I64, bit))
    return broadcast(builder, builder.trunc(shift, I32), SUMS)


def _code_float_avx512(bit):
    """A permutation of the sixteen values by the low four bits of each word."""

    def emit(builder, words, column):
        table = ir.Constant(FLOATS, [float(code) for code in range(-8, 8)])
        callee = function(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, FLOATS, SUMS)
        amount = _bit_of_column(builder, column, bit)
        return builder.call(callee, [table, builder.lshr(words, amount)])

    return emit


def _code_float(builder, words, column):
    low = builder.and_(builder.lshr(words, _bit_of_column(builder, column, 0)), splat(SUMS, 15))
    return builder.sitofp(builder.sub(low, splat(SUMS, 8)), FLOATS)


_EXPAND = {"avx512": _expand_avx512, "avx2": _expand_avx2, "generic": _expand_generic}
