"""Vectors in numba: types backed by LLVM vectors, and the operations every processor has.

An operation is one ``@intrinsic`` that emits LLVM IR; LLVM splits vectors wider than the
processor's registers. Addresses are int64. What differs between instruction sets is in ``_isa.py``.

    i8x64  i32x16  f32x16      the lanes of a cell, the sums of a tile's rows, their scales
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"

I1, I8, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
ELEMENTS = {"i8": I8, "i16": I16, "i32": I32, "f32": F32}


class Vector(types.Type):
    """A numba type that is an LLVM vector."""

    def __init__(self, element: str, count: int) -> None:
        self.element, self.count = element, count
        super().__init__(name=f"{element}x{count}")

    @property
    def llvm(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(ELEMENTS[self.element], self.count)

    def __reduce__(self) -> tuple[type[Vector], tuple[str, int]]:
        return Vector, (self.element, self.count)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, frontend) -> None:
        super().__init__(manager, frontend, frontend.llvm)


i8x64, i32x16, f32x16 = Vector("i8", 64), Vector("i32", 16), Vector("f32", 16)
LANES, SUMS, FLOATS = i8x64.llvm, i32x16.llvm, f32x16.llvm
address, int32, float32 = types.int64, types.int32, types.float32

Emit = Callable[..., Any]


def operation(emit: Emit, result: types.Type, *arguments: types.Type) -> Any:
    """Return an intrinsic of up to four arguments whose IR is ``emit(builder, *values)``."""
    signature = result(*arguments)

    def generate(context, builder, _, values):
        return emit(builder, *values)

    return intrinsic(_by_arity(len(arguments), (signature, generate)))


def _by_arity(arity: int, answer: tuple[Any, Any]) -> Callable[..., Any]:
    """Return a typing function of ``arity`` arguments; numba reads its signature."""

    def none(typing):
        return answer

    def one(typing, a):
        return answer

    def two(typing, a, b):
        return answer

    def three(typing, a, b, c):
        return answer

    def four(typing, a, b, c, d):
        return answer

    return (none, one, two, three, four)[arity]


def function(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Type) -> Any:
    """Return the LLVM function ``name``, declared in the module being built."""
    kind = ir.FunctionType(result, arguments)
    return cgutils.get_or_insert_function(builder.module, kind, name)


def splat(kind: ir.VectorType, value: float) -> ir.Constant:
    """Return a constant vector of one value."""
    return ir.Constant(kind, [value] * kind.count)


def load_as(builder: ir.IRBuilder, at: Any, kind: ir.Type) -> Any:
    """Return what lies at an address of any alignment."""
    value = builder.load(builder.inttoptr(at, kind.as_pointer()))
    value.align = 1
    return value


def store_at(builder: ir.IRBuilder, at: Any, value: Any) -> Any:
    """Store at an address of any alignment; the int64 0 because an intrinsic returns something."""
    builder.store(value, builder.inttoptr(at, value.type.as_pointer())).align = 1
    return ir.Constant(I64, 0)


def broadcast(builder: ir.IRBuilder, value: Any, kind: ir.VectorType) -> Any:
    """Return a vector of one run-time value."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, nothing, splat(ir.VectorType(I32, kind.count), 0))


def pick(builder: ir.IRBuilder, vector: Any, indices: Sequence[int]) -> Any:
    """Return the elements of ``vector`` at constant indices."""
    order = ir.Constant(ir.VectorType(I32, len(indices)), list(indices))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), order)


def _loader(kind: ir.Type, wider: ir.Type | None = None) -> Emit:
    def emit(builder, at):
        value = load_as(builder, at, kind)
        return builder.zext(value, wider) if wider else value

    return emit


def _halves(builder, at):
    words = load_as(builder, at, ir.VectorType(I16, 16))
    return builder.fpext(builder.bitcast(words, ir.VectorType(F16, 16)), FLOATS)


def _call(name: str, kind: ir.Type, arity: int) -> Emit:
    def emit(builder, *values):
        return builder.call(function(builder, name, kind, *[kind] * arity), values)

    return emit


def _prefetch(builder, at):
    pointer = I8.as_pointer()
    callee = function(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32, I32, I32)
    # For reading, to keep in all caches, data.
    options = [ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)]
    builder.call(callee, [builder.inttoptr(at, pointer), *options])
    return ir.Constant(I64, 0)


def _reduce_add(builder, vector):
    return builder.call(function(builder, "llvm.vector.reduce.add.v16i32", I32, SUMS), [vector])


def _reduce_max(builder, vector):
    return builder.call(function(builder, "llvm.vector.reduce.smax.v16i32", I32, SUMS), [vector])


def _bytes(builder, at, vector):
    return store_at(builder, at, builder.trunc(vector, ir.VectorType(I8, 16)))


load_lanes = operation(_loader(LANES), i8x64, address)
load_sums = operation(_loader(SUMS), i32x16, address)
load_floats = operation(_loader(FLOATS), f32x16, address)
load_halves = operation(_halves, f32x16, address)  # 16 float16 as float32
load_float = operation(_loader(F32), float32, address)
load_u16 = operation(_loader(I16, I64), address, address)
load_i32 = operation(_loader(I32), int32, address)
load_u32 = operation(_loader(I32, I64), address, address)
load_u64 = operation(_loader(I64), address, address)
store_lanes = operation(store_at, address, address, i8x64)
store_sums = operation(store_at, address, address, i32x16)
store_floats = operation(store_at, address, address, f32x16)
store_float = operation(store_at, address, address, float32)
store_i32 = operation(store_at, address, address, int32)
store_bytes = operation(_bytes, address, address, i32x16)  # the low byte of each
prefetch = operation(_prefetch, address, address)

no_sums = operation(lambda _: splat(SUMS, 0), i32x16)
no_floats = operation(lambda _: splat(FLOATS, 0.0), f32x16)
all_sums = operation(lambda b, value: broadcast(b, value, SUMS), i32x16, int32)
all_floats = operation(lambda b, value: broadcast(b, value, FLOATS), f32x16, float32)

as_pointer = operation(lambda b, at: b.inttoptr(at, I8.as_pointer()), types.voidptr, address)
trailing_zeros = operation(
    lambda b, x: b.call(function(b, "llvm.cttz.i64", I64, I64, I1), [x, ir.Constant(I1, 1)]),
    address,
    address,
)  # of a word that is not 0
popcount = operation(_call("llvm.ctpop.i64", I64, 1), address, address)
add_i = operation(lambda b, x, y: b.add(x, y), i32x16, i32x16, i32x16)
subtract_i = operation(lambda b, x, y: b.sub(x, y), i32x16, i32x16, i32x16)
shift_left = operation(
    lambda b, x, n: b.shl(x, broadcast(b, n, SUMS)), i32x16, i32x16, int32
)  # by n bits, likewise right
shift_right = operation(lambda b, x, n: b.ashr(x, broadcast(b, n, SUMS)), i32x16, i32x16, int32)
sum_i = operation(_reduce_add, int32, i32x16)

to_float = operation(lambda b, x: b.sitofp(x, FLOATS), f32x16, i32x16)
to_int = operation(lambda b, x: b.fptosi(x, SUMS), i32x16, f32x16)
round_even = operation(_call("llvm.rint.v16f32", FLOATS, 1), f32x16, f32x16)
# The bits of |x|, ordered as integers: 0 < finite < infinity < NaN.
magnitude_bits = operation(lambda b, x: b.and_(x, splat(SUMS, 0x7FFFFFFF)), i32x16, i32x16)
maximum = operation(_call("llvm.smax.v16i32", SUMS, 2), i32x16, i32x16, i32x16)
largest = operation(_reduce_max, int32, i32x16)
float_of_bits = operation(lambda b, x: b.bitcast(x, F32), float32, int32)
add_f = operation(lambda b, x, y: b.fadd(x, y), f32x16, f32x16, f32x16)
multiply = operation(lambda b, x, y: b.fmul(x, y), f32x16, f32x16, f32x16)
fused = operation(_call("llvm.fma.v16f32", FLOATS, 3), f32x16, f32x16, f32x16, f32x16)  # a b + c
as_words = operation(lambda b, x: b.bitcast(x, SUMS), i32x16, i8x64)


def _and_xor(and_byte: int, xor_byte: int) -> Emit:
    return lambda b, x: b.xor(b.and_(x, splat(LANES, and_byte)), splat(LANES, xor_byte))


def _shifted_bytes(builder, x, shift, low):
    """(x >> shift) & low of every byte; the shift of words is cleaned by the AND."""
    words = ir.VectorType(I16, 32)
    shifted = builder.lshr(
        builder.bitcast(x, words), broadcast(builder, builder.trunc(shift, I16), words)
    )
    bits = broadcast(builder, builder.trunc(low, I8), LANES)
    return builder.and_(builder.bitcast(shifted, LANES), bits)


low_nibbles = operation(_and_xor(15, 8), i8x64, i8x64)  # code + 8
high_nibbles_16 = operation(_and_xor(0xF0, 0x80), i8x64, i8x64)  # 16 (code + 8)
bits_of = operation(_shifted_bytes, i8x64, i8x64, address, address)
no_lanes = operation(lambda _: splat(LANES, 0), i8x64)
eights = operation(lambda _: splat(LANES, 8), i8x64)
and_lanes = operation(
    lambda b, x, byte: b.and_(x, broadcast(b, b.trunc(byte, I8), LANES)), i8x64, i8x64, address
)
or_lanes = operation(lambda b, x, y: b.or_(x, y), i8x64, i8x64, i8x64)
shift_lanes_2 = operation(lambda b, x: b.shl(x, splat(LANES, 2)), i8x64, i8x64)
xor_lanes = operation(
    lambda b, x, byte: b.xor(x, broadcast(b, b.trunc(byte, I8), LANES)), i8x64, i8x64, address
)


def _byte_of(builder, words, c):
    """Byte ``c`` of every word, unsigned, as float."""
    shifted = builder.lshr(
        words, broadcast(builder, builder.trunc(builder.shl(c, ir.Constant(I64, 3)), I32), SUMS)
    )
    return builder.uitofp(builder.and_(shifted, splat(SUMS, 255)), FLOATS)


def _quarter(i):
    """Sixteen of the 64 lanes, four rows, as floats."""

    def emit(builder, lanes):
        return builder.uitofp(pick(builder, lanes, range(16 * i, 16 * i + 16)), FLOATS)

    return emit


def _four_times(i):
    """Elements 4 i to 4 i + 3, each four times."""
    return lambda b, x: pick(b, x, [4 * i + lane // 4 for lane in range(16)])


def _store_four(builder, at, stride, vector):
    """Four floats at each of four addresses, ``stride`` bytes apart."""
    for row in range(4):
        store_at(builder, at, pick(builder, vector, range(4 * row, 4 * row + 4)))
        at = builder.add(at, stride)
    return ir.Constant(I64, 0)


quarter_floats = tuple(operation(_quarter(i), f32x16, i8x64) for i in range(4))
four_times = tuple(operation(_four_times(i), f32x16, f32x16) for i in range(4))
store_four = operation(_store_four, address, address, address, f32x16)
subtract_f = operation(lambda b, x, y: b.fsub(x, y), f32x16, f32x16, f32x16)
byte_as_float = operation(_byte_of, f32x16, i32x16, address)
