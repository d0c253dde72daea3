"""Operations that only AVX-512 with VBMI has: gathers of bytes within a register."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from edgesparse_kernels._simd import I1, LANES, function, i8x64, i32x16, operation, splat

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


def _shuffle(builder, table, places):
    callee = function(builder, "llvm.x86.avx512.pshuf.b.512", LANES, LANES, LANES)
    return builder.call(callee, [table, places])


def _permute(builder, table, places):
    callee = function(builder, "llvm.x86.avx512.permvar.qi.512", LANES, LANES, LANES)
    return builder.call(callee, [table, places])


def _compress(builder, lanes, mask):
    bits = ir.VectorType(I1, 64)
    callee = function(builder, "llvm.x86.avx512.mask.compress.v64i8", LANES, LANES, LANES, bits)
    return builder.call(callee, [lanes, splat(LANES, 0), builder.bitcast(mask, bits)])


def _dot_lanes(builder, sums, weights, values):
    kind = i32x16.llvm
    callee = function(builder, "llvm.x86.avx512.vpdpbusd.512", kind, kind, LANES, LANES)
    return builder.call(callee, [sums, weights, values])


shuffle = operation(_shuffle, i8x64, i8x64, i8x64)  # within each 16 bytes
permute = operation(_permute, i8x64, i8x64, i8x64)  # over all 64 bytes
compress = operation(_compress, i8x64, i8x64, types.int64)  # bytes under the mask, then zeros
dot_lanes = operation(_dot_lanes, i32x16, i32x16, i8x64, i8x64)
