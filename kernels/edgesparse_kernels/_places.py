"""Places of kept weights, and what they are looked up in, as lanes; any processor has these."""

from __future__ import annotations

from llvmlite import ir

from edgesparse_kernels._simd import (
    I16,
    I64,
    LANES,
    address,
    broadcast,
    i8x64,
    load_as,
    operation,
    splat,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

WORDS = ir.VectorType(I16, 32)


def _eight_repeated(builder, at):
    """The eight bytes at an address, eight times."""
    eight = load_as(builder, at, I64)
    return builder.bitcast(broadcast(builder, eight, ir.VectorType(I64, 8)), LANES)


def _places_in_octet(builder, plane, k):
    """Lane 4 r + j: the place of octet ``k`` in its quad, and 4 more in the second quad."""
    amount = broadcast(builder, builder.trunc(builder.shl(k, ir.Constant(I64, 1)), I16), WORDS)
    shifted = builder.bitcast(builder.lshr(builder.bitcast(plane, WORDS), amount), LANES)
    second = ir.Constant(LANES, [0, 0, 4, 4] * 16)
    return builder.or_(builder.and_(shifted, splat(LANES, 3)), second)


def _places_in_window(shift: int):
    """Six bits: the low four, and two of a plane moved up by ``shift`` to the bits 4 and 5."""

    def emit(builder, low, plane):
        words = builder.bitcast(plane, WORDS)
        moved = builder.shl(words, splat(WORDS, shift)) if shift > 0 else words
        moved = builder.lshr(words, splat(WORDS, -shift)) if shift < 0 else moved
        high = builder.and_(builder.bitcast(moved, LANES), splat(LANES, 0x30))
        return builder.or_(low, high)

    return emit


def _high_nibbles(builder, lanes):
    shifted = builder.lshr(builder.bitcast(lanes, WORDS), splat(WORDS, 4))
    return builder.and_(builder.bitcast(shifted, LANES), splat(LANES, 15))


eight_repeated = operation(_eight_repeated, i8x64, address)
places_in_octet = operation(_places_in_octet, i8x64, i8x64, address)
window_places = tuple(
    operation(_places_in_window(shift), i8x64, i8x64, i8x64) for shift in (4, 2, 0, -2)
)
high_nibbles = operation(_high_nibbles, i8x64, i8x64)
