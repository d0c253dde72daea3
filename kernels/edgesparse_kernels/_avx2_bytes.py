"""Operations of AVX2: sums of pairs of products in 16 bits, and gathers of bytes.

A register of 64 lanes is two of the processor's. Pairs of products of lanes below 16 and digits fit
in 16 bits eight times over: 8 * 2 * 15 * 128 < 32768.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from edgesparse_kernels._avx2 import joined
from edgesparse_kernels._places import WORDS
from edgesparse_kernels._simd import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    SUMS,
    Vector,
    address,
    broadcast,
    function,
    i8x64,
    i32x16,
    int32,
    load_as,
    operation,
    pick,
    splat,
    store_at,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

PAIRS_AT_ONCE = 8  # products of lanes that sums of 16 bits have room for

i16x32 = Vector("i16", 32)
_HALF, _SIXTEEN, _TWO = ir.VectorType(I8, 32), ir.VectorType(I8, 16), ir.VectorType(I64, 2)


def _halves(builder, vector):
    """The two registers of the processor that a vector takes."""
    count = vector.type.count // 2
    return pick(builder, vector, range(count)), pick(builder, vector, range(count, 2 * count))


def _by_halves(builder, call, *vectors):
    """``call`` on the first and on the second halves."""
    split = [_halves(builder, vector) for vector in vectors]
    return joined(builder, [call(*parts) for parts in zip(*split, strict=True)])


def _add_products(builder, pairs, weights, values):
    """Lanes of ``weights`` unsigned, of ``values`` signed."""
    words = ir.VectorType(I16, 16)
    callee = function(builder, "llvm.x86.avx2.pmadd.ub.sw", words, _HALF, _HALF)
    products = _by_halves(builder, lambda w, v: builder.call(callee, [w, v]), weights, values)
    return builder.add(pairs, products)


def _subtract_eights(builder, pairs, values):
    words = ir.VectorType(I16, 16)
    callee = function(builder, "llvm.x86.avx2.pmadd.ub.sw", words, _HALF, _HALF)
    eights = splat(_HALF, 8)
    return builder.sub(
        pairs, _by_halves(builder, lambda v: builder.call(callee, [eights, v]), values)
    )


def _sum_pairs(builder, pairs):
    eight, words = ir.VectorType(I32, 8), ir.VectorType(I16, 16)
    callee = function(builder, "llvm.x86.avx2.pmadd.wd", eight, words, words)
    return _by_halves(builder, lambda p: builder.call(callee, [p, splat(words, 1)]), pairs)


def _shuffle(builder, table, places):
    callee = function(builder, "llvm.x86.avx2.pshuf.b", _HALF, _HALF, _HALF)
    return _by_halves(builder, lambda t, p: builder.call(callee, [t, p]), table, places)


def _look_up(quarter):
    """Byte ``low + 16 * two bits of high`` of the 64 at an address, for each lane.

    The bits are those of ``quarter``, two a lane; each decides between two tables of 16 bytes.
    """

    def emit(builder, at, low, high):
        words = builder.bitcast(high, WORDS)
        fifth = builder.bitcast(builder.shl(words, splat(WORDS, 7 - 2 * quarter)), LANES)
        sixth = builder.bitcast(builder.shl(words, splat(WORDS, 6 - 2 * quarter)), LANES)
        found = []
        for table in range(4):
            sixteen = load_as(builder, builder.add(at, ir.Constant(I64, 16 * table)), _SIXTEEN)
            repeated = pick(builder, sixteen, list(range(16)) * 4)
            found.append(_shuffle(builder, repeated, low))
        first = _choose(builder, found[0], found[1], fifth)
        return _choose(builder, first, _choose(builder, found[2], found[3], fifth), sixth)

    return emit


def _choose(builder, clear, set_, by):
    """Lanes of ``set_`` where the highest bit of ``by`` is set, of ``clear`` elsewhere."""
    callee = function(builder, "llvm.x86.avx2.pblendvb", _HALF, _HALF, _HALF, _HALF)
    return _by_halves(builder, lambda *parts: builder.call(callee, parts), clear, set_, by)


def _order_table() -> list[int]:
    """Word m: the places of the bits set in m, a byte each, then 0x80, which takes a 0."""
    table = np.full((256, 8), 0x80, np.uint8)
    for mask in range(256):
        kept = [place for place in range(8) if mask >> place & 1]
        table[mask, : len(kept)] = kept
    return [int(word) for word in table.view(np.uint64)[:, 0]]


def _table(builder):
    """Return the address of that table, a constant of the module being built."""
    kind, name = ir.ArrayType(I64, 256), "edgesparse_order_table"
    variable = builder.module.globals.get(name)
    if variable is None:
        variable = ir.GlobalVariable(builder.module, kind, name)
        variable.linkage, variable.global_constant, variable.align = "internal", True, 64
        variable.initializer = ir.Constant(kind, _order_table())
    return builder.ptrtoint(variable, I64)


def _pack(builder, x, mask, to):
    """Store the bytes at ``x`` whose bits are set side by side, zeros after; return their sum.

    Eight at a time by a table of shuffles; up to eight bytes are written after the last.
    """
    shuffle = function(builder, "llvm.x86.ssse3.pshuf.b.128", _SIXTEEN, _SIXTEEN, _SIXTEEN)
    differences = function(builder, "llvm.x86.sse2.psad.bw", _TWO, _SIXTEEN, _SIXTEEN)
    table, total = _table(builder), splat(_TWO, 0)
    for begin in range(0, 64, 16):
        orders, places = ir.Constant(_TWO, ir.Undefined), []
        for half in range(2):
            shifted = builder.lshr(mask, ir.Constant(I64, begin + 8 * half))
            byte = builder.and_(shifted, ir.Constant(I64, 255))
            order = load_as(
                builder, builder.add(table, builder.shl(byte, ir.Constant(I64, 3))), I64
            )
            if half:
                order = builder.add(order, ir.Constant(I64, 0x0808080808080808))
            orders = builder.insert_element(orders, order, ir.Constant(I32, half))
            places.append(to)
            count = builder.call(function(builder, "llvm.ctpop.i64", I64, I64), [byte])
            to = builder.add(to, count)
        digits = load_as(builder, builder.add(x, ir.Constant(I64, begin)), _SIXTEEN)
        packed = builder.call(shuffle, [digits, builder.bitcast(orders, _SIXTEEN)])
        for half, place in enumerate(places):
            words = builder.bitcast(packed, _TWO)
            store_at(builder, place, builder.extract_element(words, ir.Constant(I32, half)))
        unsigned = builder.xor(packed, splat(_SIXTEEN, 0x80))  # 128 more each
        total = builder.add(total, builder.call(differences, [unsigned, splat(_SIXTEEN, 0)]))
    both = [builder.extract_element(total, ir.Constant(I32, half)) for half in range(2)]
    return builder.sub(builder.add(*both), ir.Constant(I64, 64 * 128))


def _sum_of_eight(builder, at):
    """The sum of the eight digits at an address."""
    differences = function(builder, "llvm.x86.sse2.psad.bw", _TWO, _SIXTEEN, _SIXTEEN)
    eight = load_as(builder, at, I64)
    words = builder.insert_element(splat(_TWO, 0), eight, ir.Constant(I32, 0))
    unsigned = builder.xor(builder.bitcast(words, _SIXTEEN), splat(_SIXTEEN, 0x80))
    total = builder.call(differences, [unsigned, splat(_SIXTEEN, 0)])
    first = builder.extract_element(total, ir.Constant(I32, 0))
    return builder.sub(first, ir.Constant(I64, 8 * 128))


no_pairs = operation(lambda _: splat(i16x32.llvm, 0), i16x32)
add_products = operation(_add_products, i16x32, i16x32, i8x64, i8x64)
subtract_eights = operation(_subtract_eights, i16x32, i16x32, i8x64)
sum_pairs = operation(_sum_pairs, i32x16, i16x32)  # of each four lanes
shuffle = operation(_shuffle, i8x64, i8x64, i8x64)  # within each 16 bytes
look_up = tuple(operation(_look_up(quarter), i8x64, address, i8x64, i8x64) for quarter in range(4))
pack_bytes = operation(_pack, address, address, address, address)
sum_of_eight = operation(_sum_of_eight, address, address)
four_repeated = operation(lambda b, four: b.bitcast(broadcast(b, four, SUMS), LANES), i8x64, int32)
