"""Operations for AVX2: products of up to four rows of digits, kept in 16 bits as long as they fit.

AVX2 multiplies bytes into pairs of products of 16 bits, and needs another instruction to widen
these. A product of a code (0 to 15) and a digit (-128 to 127) is at least -1920, so eight pairs
can be added before anything is widened: 8 * 2 * -1920 = -30,720, above -32,768.

    Pairs       for each row of digits 32 sums of pairs, int16: two for every row of the tile
    Totals      for each row of digits 16 sums, int32
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from edgesparse_kernels._simd import (
    I8,
    I16,
    I32,
    Vector,
    address,
    broadcast,
    function,
    i8x64,
    load_as,
    operation,
    pick,
    splat,
    store_at,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

BYTES, WORDS, EIGHT = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
QUADS = 4  # that may be added between two widenings: each adds one pair, its high half another


def _pairs_of(rows: int) -> Vector:
    return Vector("i16", 32 * rows)


def joined(builder, parts):
    """One vector of those in ``parts``, whose number is a power of two."""
    while len(parts) > 1:
        both = list(range(2 * parts[0].type.count))
        order = ir.Constant(ir.VectorType(I32, len(both)), both)
        parts = [
            builder.shuffle_vector(first, second, order)
            for first, second in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _four_digits(builder, at):
    return builder.bitcast(broadcast(builder, load_as(builder, at, I32), EIGHT), BYTES)


def _add_quad(builder, pairs, lanes, x, *steps):
    """Add the products of a quad's 64 lanes, unsigned below 16, and four digits of each row."""
    multiply = function(builder, "llvm.x86.avx2.pmadd.ub.sw", WORDS, BYTES, BYTES)
    halves = [pick(builder, lanes, range(begin, begin + 32)) for begin in (0, 32)]
    found = []
    for row in range(pairs.type.count // 32):
        at = builder.add(x, steps[row - 1]) if row else x
        digits = _four_digits(builder, at)
        for half in (0, 1):
            begin = 32 * row + 16 * half
            before = pick(builder, pairs, range(begin, begin + 16))
            product = builder.call(multiply, [halves[half], digits])
            found.append(builder.add(before, product))
    return joined(builder, found)


def _widened(builder, totals, pairs):
    add_up = function(builder, "llvm.x86.avx2.pmadd.wd", EIGHT, WORDS, WORDS)
    parts = [
        builder.call(add_up, [pick(builder, pairs, range(begin, begin + 16)), splat(WORDS, 1)])
        for begin in range(0, pairs.type.count, 16)
    ]
    return builder.add(totals, joined(builder, parts))


@intrinsic
def add_quad(typing, pairs, lanes, x, step1, step2, step3):
    """Return ``pairs`` plus 64 lanes below 16 times the digits at ``x`` and ``x + step``."""

    def generate(context, builder, signature, values):
        return _add_quad(builder, *values)

    return pairs(pairs, i8x64, address, address, address, address), generate


@intrinsic
def widen(typing, totals, pairs):
    """Return ``totals`` plus the pairs, two for each row of the tile."""

    def generate(context, builder, signature, values):
        return _widened(builder, *values)

    return totals(totals, pairs), generate


@intrinsic
def no_totals(typing, pairs):
    """Return zeros for as many rows of digits as ``pairs`` is for."""
    kind = Vector("i32", pairs.count // 2)

    def generate(context, builder, signature, values):
        return splat(kind.llvm, 0)

    return kind(pairs), generate


@intrinsic
def load_totals(typing, pairs, at):
    """Return the totals that lie at an address, of as many rows as ``pairs`` is for."""
    kind = Vector("i32", pairs.count // 2)

    def generate(context, builder, signature, values):
        return load_as(builder, values[1], kind.llvm)

    return kind(pairs, address), generate


@intrinsic
def store_totals(typing, at, totals):
    """Write the totals of one row of digits after the other to an address."""

    def generate(context, builder, signature, values):
        return store_at(builder, *values)

    return types.int64(address, totals), generate


def _no_pairs(rows):
    kind = _pairs_of(rows)
    return operation(lambda _: splat(kind.llvm, 0), kind)


no_pairs1, no_pairs2, no_pairs4 = _no_pairs(1), _no_pairs(2), _no_pairs(4)
