"""Explicit SIMD values for numba: an LLVM vector of lanes as a numba type, with operators.

LLVM legalises `<W x float>` for AVX-512, AVX2, SSE and NEON; values that a loop carries stay in registers. Every
floating operation is one IEEE-754 binary32 operation: no fastmath flag is set, so nothing is contracted or reordered.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

I32 = ir.IntType(32)
I64 = ir.IntType(64)
ELEMENTS: dict[str, ir.Type] = {
    "f32": ir.FloatType(),
    "i32": I32,
    "i8": ir.IntType(8),
    "i1": ir.IntType(1),
}
SCALARS = {"f32": types.float32, "i32": types.int32, "i8": types.int8}
OF_DTYPE: dict[Any, str] = {types.float32: "f32", types.int32: "i32", types.int8: "i8", types.uint8: "i8"}


class Lanes(types.Type):
    """The numba type of `width` lanes of one element kind ("f32", "i32", "i8", "i1")."""

    def __init__(self, element: str, width: int) -> None:
        self.element = element
        self.width = width
        super().__init__(name=f"lanes_{element}x{width}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ELEMENTS[self.element], self.width)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Lanes) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


def splat(builder: ir.IRBuilder, scalar: ir.Value, width: int) -> ir.Value:
    """All lanes equal to one LLVM scalar."""
    vector = ir.VectorType(scalar.type, width)
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))


def as_lanes(context: Any, builder: ir.IRBuilder, value: ir.Value, ty: types.Type, like: Lanes) -> ir.Value:
    """An operand as lanes of the kind of `like`; a Python or numpy scalar is rounded to it first."""
    if isinstance(ty, Lanes):
        return value
    return splat(builder, context.cast(builder, value, ty, SCALARS[like.element]), like.width)


def _define(op: Callable, float_op: str | None, int_op: str | None, compare: str | None = None) -> None:
    def typer(a: types.Type, b: types.Type) -> types.Type | None:
        lanes = a if isinstance(a, Lanes) else b
        if not isinstance(lanes, Lanes):
            return None
        for operand in (a, b):
            if isinstance(operand, Lanes):
                if operand != lanes:
                    return None
            elif not isinstance(operand, types.Number):
                return None
        return Lanes("i1", lanes.width) if compare else lanes

    @type_callable(op)
    def _type(context: Any) -> Callable:
        return typer

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        lanes = sig.args[0] if isinstance(sig.args[0], Lanes) else sig.args[1]
        a, b = (as_lanes(context, builder, v, t, lanes) for v, t in zip(args, sig.args, strict=True))
        is_float = lanes.element == "f32"
        if compare:
            if not is_float:
                return builder.icmp_signed(compare, a, b)
            # C's != is true for NaN, the other comparisons are false.
            return (builder.fcmp_unordered if compare == "!=" else builder.fcmp_ordered)(compare, a, b)
        name = float_op if is_float else int_op
        assert name is not None
        return getattr(builder, name)(a, b)

    for signature in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(op, *signature)(lower)


_define(operator.add, "fadd", "add")
_define(operator.sub, "fsub", "sub")
_define(operator.mul, "fmul", "mul")
_define(operator.and_, None, "and_")
_define(operator.or_, None, "or_")
_define(operator.xor, None, "xor")
_define(operator.lshift, None, "shl")
_define(operator.rshift, None, "ashr")
for _op, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _define(_op, None, None, _sign)


def _type_unary(op: Callable) -> None:
    @type_callable(op)
    def _type(context: Any) -> Callable:
        return lambda a: a if isinstance(a, Lanes) else None


_type_unary(operator.invert)
_type_unary(operator.neg)


@lower_builtin(operator.invert, Lanes)
def _invert(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.not_(args[0])


@lower_builtin(operator.neg, Lanes)
def _negate(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.fneg(args[0]) if sig.args[0].element == "f32" else builder.neg(args[0])


def data_pointer(context: Any, builder: ir.IRBuilder, ty: types.Type, value: ir.Value) -> ir.Value:
    """The address of an array's first element; every array given to a lane program is C-contiguous."""
    return context.make_array(ty)(context, builder, value).data


def load(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value, lanes: Lanes) -> ir.Value:
    place = builder.bitcast(builder.gep(pointer, [index]), lanes.llvm.as_pointer())
    return builder.load(place, align=1 if lanes.element == "i8" else 4)


def store(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value, value: ir.Value, lanes: Lanes) -> None:
    place = builder.bitcast(builder.gep(pointer, [index]), lanes.llvm.as_pointer())
    builder.store(value, place, align=1 if lanes.element == "i8" else 4)


def interleave(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The transpose of a square of n vectors with n elements (n a power of two), in log2(n) rounds of shuffles."""
    n = len(rows)

    def mask(positions: list[int]) -> ir.Constant:
        return ir.Constant(ir.VectorType(I32, n), positions)

    step = n // 2
    while step:
        result = list(rows)
        for i in range(n):
            if i & step:
                continue
            a, b = rows[i], rows[i | step]
            low = [n + (q ^ step) if q & step else q for q in range(n)]
            high = [n + q if q & step else q | step for q in range(n)]
            result[i] = builder.shuffle_vector(a, b, mask(low))
            result[i | step] = builder.shuffle_vector(a, b, mask(high))
        rows = result
        step //= 2
    return rows


@intrinsic(prefer_literal=True)
def _transpose16(
    typing: Any, source: Any, start: Any, stride: Any, target: Any, place: Any, step: Any
) -> Any:
    """Sixteen runs of 16 elements, `stride` apart from `start` on, become 16 runs `step` apart from `place` on."""
    lanes = Lanes(OF_DTYPE[source.dtype], 16)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        read = data_pointer(context, builder, sig.args[0], args[0])
        write = data_pointer(context, builder, sig.args[3], args[3])
        first, apart, to, to_apart = (
            context.cast(builder, args[k], sig.args[k], types.intp) for k in (1, 2, 4, 5)
        )

        def nth(base: ir.Value, distance: ir.Value, k: int) -> ir.Value:
            return builder.add(base, builder.mul(distance, ir.Constant(base.type, k)))

        rows = interleave(builder, [load(builder, read, nth(first, apart, k), lanes) for k in range(16)])
        for k, row in enumerate(rows):
            store(builder, write, nth(to, to_apart, k), row, lanes)
        return context.get_dummy_value()

    return types.void(source, start, stride, target, place, step), codegen


# What the decorator makes of it takes no typing context.
transpose16: Any = _transpose16
