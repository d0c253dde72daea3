"""More operations on 16 floats: what the parts of a model between its products need."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import (
    FLOATS,
    I8,
    I32,
    SUMS,
    add_f,
    address,
    all_floats,
    f32x16,
    float32,
    function,
    fused,
    i32x16,
    load_as,
    multiply,
    operation,
    pick,
    round_even,
    to_int,
)

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


def _halving(combine):
    """Combine lane i with lane i + 8, then i + 4, …: one order on every processor."""

    def emit(builder, vector):
        width = 16
        while width > 1:
            width //= 2
            low, high = (
                pick(builder, vector, range(width)),
                pick(builder, vector, range(width, 2 * width)),
            )
            vector = combine(builder, low, high)
        return builder.extract_element(vector, ir.Constant(I32, 0))

    return emit


def _greater(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _bytes_as_floats(builder, at):
    return builder.sitofp(load_as(builder, at, ir.VectorType(I8, 16)), FLOATS)


def _power_of_two(builder, exponents):
    """2 ** n for n from -126 to 127."""
    biased = builder.add(exponents, ir.Constant(SUMS, [127] * 16))
    return builder.bitcast(builder.shl(biased, ir.Constant(SUMS, [23] * 16)), FLOATS)


sum_f = operation(_halving(lambda b, x, y: b.fadd(x, y)), float32, f32x16)
largest_f = operation(_halving(_greater), float32, f32x16)
maximum_f = operation(_greater, f32x16, f32x16, f32x16)
minimum_f = operation(
    lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y), f32x16, f32x16, f32x16
)
divide = operation(lambda b, x, y: b.fdiv(x, y), f32x16, f32x16, f32x16)
load_bytes = operation(_bytes_as_floats, f32x16, address)  # 16 int8 as float32
power_of_two = operation(_power_of_two, f32x16, i32x16)
square_root = operation(
    lambda b, x: b.call(function(b, "llvm.sqrt.f32", ir.FloatType(), ir.FloatType()), [x]),
    float32,
    float32,
)


@jit
def exp(x):
    """``e ** x`` to 2 units in the last place for x from -87 to 88; what is outside is clipped.

    ``x = n ln 2 + r`` with a whole n and ``|r| <= ln(2) / 2``; ``e ** r`` is the polynomial of the
    Cephes library (Moshier, netlib.org/cephes).
    """
    x = minimum_f(maximum_f(x, all_floats(np.float32(-87.0))), all_floats(np.float32(88.0)))
    n = round_even(multiply(x, all_floats(np.float32(1.44269504))))
    # ln 2 in two parts, the first short enough that n times it is exact.
    r = fused(n, all_floats(np.float32(-0.693359375)), x)
    r = fused(n, all_floats(np.float32(2.12194440e-4)), r)
    p = all_floats(np.float32(1.9875691500e-4))
    p = fused(p, r, all_floats(np.float32(1.3981999507e-3)))
    p = fused(p, r, all_floats(np.float32(8.3334519073e-3)))
    p = fused(p, r, all_floats(np.float32(4.1665795894e-2)))
    p = fused(p, r, all_floats(np.float32(1.6666665459e-1)))
    p = fused(p, r, all_floats(np.float32(5.0000001201e-1)))
    p = fused(p, multiply(r, r), add_f(r, all_floats(np.float32(1.0))))
    return multiply(p, power_of_two(to_int(n)))
