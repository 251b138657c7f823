"""The vocabulary as numba intrinsics on explicit SIMD lanes.

The number of lanes is fixed by the processor: 32 with AVX-512 (two registers a value hide the latency of sequential
sums), else 16. It changes the speed, never the bytes, and it is part of the cache key of compiled code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qkernels.lanes.simd import (
    ELEMENTS,
    I32,
    OF_DTYPE,
    Lanes,
    as_lanes,
    data_pointer,
    load,
    splat,
    store,
)

WIDTH = 32 if llvm.get_host_cpu_features().get("avx512f") else 16
_F32, _I32, _I1 = Lanes("f32", WIDTH), Lanes("i32", WIDTH), Lanes("i1", WIDTH)
_HALF = ir.VectorType(ir.HalfType(), WIDTH)
_I16 = ir.VectorType(ir.IntType(16), WIDTH)
# Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
_MAGIC = 12582912.0


def _place(context: Any, builder: ir.IRBuilder, ty: types.Type, index: ir.Value) -> ir.Value:
    index = context.cast(builder, index, ty, types.intp)
    return builder.mul(index, ir.Constant(index.type, WIDTH))


def _element(array: types.Array) -> str:
    return OF_DTYPE[array.dtype]


def _constant(value: float | int, like: Lanes) -> ir.Constant:
    return ir.Constant(like.llvm, [value] * like.width)


def _map(result: Lanes, emit: Callable[..., ir.Value], arity: int) -> Any:
    """An intrinsic that works lane by lane on operands that are already lanes."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(builder, *args)

    if arity == 1:

        @intrinsic(prefer_literal=True)
        def one(typing: Any, a: Any) -> Any:
            return result(a), codegen

        return one

    @intrinsic(prefer_literal=True)
    def two(typing: Any, a: Any, b: Any) -> Any:
        lanes = a if isinstance(a, Lanes) else b

        def both(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            x, y = (as_lanes(context, builder, v, t, lanes) for v, t in zip(args, sig.args, strict=True))
            return emit(builder, x, y)

        return result(a, b), both

    return two


@intrinsic(prefer_literal=True)
def ld(typing: Any, array: Any, i: Any) -> Any:
    lanes = Lanes(_element(array), WIDTH)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        return load(builder, pointer, _place(context, builder, sig.args[1], args[1]), lanes)

    return lanes(array, i), codegen


@intrinsic(prefer_literal=True)
def st(typing: Any, array: Any, i: Any, value: Any) -> Any:
    lanes = Lanes(_element(array), WIDTH)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        store(builder, pointer, _place(context, builder, sig.args[1], args[1]), args[2], lanes)
        return context.get_dummy_value()

    return types.void(array, i, value), codegen


@intrinsic(prefer_literal=True)
def ldb(typing: Any, array: Any, i: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        value = load(builder, pointer, _place(context, builder, sig.args[1], args[1]), Lanes("i8", WIDTH))
        return builder.zext(value, _I32.llvm)

    return _I32(array, i), codegen


@intrinsic(prefer_literal=True)
def stb(typing: Any, array: Any, i: Any, value: Any) -> Any:
    byte = Lanes("i8", WIDTH)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        low = builder.trunc(as_lanes(context, builder, args[2], sig.args[2], _I32), byte.llvm)
        store(builder, pointer, _place(context, builder, sig.args[1], args[1]), low, byte)
        return context.get_dummy_value()

    return types.void(array, i, value), codegen


@intrinsic(prefer_literal=True)
def cst(typing: Any, table: Any, i: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        return builder.load(builder.gep(pointer, [context.cast(builder, args[1], sig.args[1], types.intp)]))

    return table.dtype(table, i), codegen


@intrinsic(prefer_literal=True)
def take(typing: Any, table: Any, index: Any) -> Any:
    lanes = Lanes(_element(table), WIDTH)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        base = builder.ptrtoint(data_pointer(context, builder, sig.args[0], args[0]), ir.IntType(64))
        wide = builder.sext(args[1], ir.VectorType(ir.IntType(64), WIDTH))
        element = ELEMENTS[lanes.element]
        size = ir.Constant(wide.type, [context.get_abi_sizeof(element)] * WIDTH)
        address = builder.add(splat(builder, base, WIDTH), builder.mul(wide, size))
        pointers = builder.inttoptr(address, ir.VectorType(element.as_pointer(), WIDTH))
        mask = ir.VectorType(ir.IntType(1), WIDTH)
        signature = ir.FunctionType(lanes.llvm, [pointers.type, I32, mask, lanes.llvm])
        name = f"llvm.masked.gather.v{WIDTH}{lanes.element}.v{WIDTH}p0"
        gather = cgutils.get_or_insert_function(builder.module, signature, name)
        undefined = ir.Constant(lanes.llvm, ir.Undefined)
        return builder.call(
            gather, [pointers, ir.Constant(I32, 4), ir.Constant(mask, [1] * WIDTH), undefined]
        )

    return lanes(table, index), codegen


@intrinsic(prefer_literal=True)
def full(typing: Any, like: Any, value: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return as_lanes(context, builder, args[1], sig.args[1], _F32)

    return _F32(like, value), codegen


@intrinsic(prefer_literal=True)
def where(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Lanes):
        lanes = a
    elif isinstance(b, Lanes):
        lanes = b
    else:
        both_int = isinstance(a, types.Integer) and isinstance(b, types.Integer)
        lanes = _I32 if both_int else _F32

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        x = as_lanes(context, builder, args[1], sig.args[1], lanes)
        y = as_lanes(context, builder, args[2], sig.args[2], lanes)
        return builder.select(args[0], x, y)

    return lanes(mask, a, b), codegen


@intrinsic(prefer_literal=True)
def any_(typing: Any, mask: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        packed = builder.bitcast(args[0], ir.IntType(WIDTH))
        return builder.icmp_unsigned("!=", packed, ir.Constant(packed.type, 0))

    return types.boolean(mask), codegen


@intrinsic(prefer_literal=True)
def get(typing: Any, array: Any, i: Any, value: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        return load(builder, pointer, _place(context, builder, sig.args[1], args[1]), value)

    return value(array, i, value), codegen


def _call(builder: ir.IRBuilder, name: str, value: ir.Value) -> ir.Value:
    function = ir.FunctionType(value.type, [value.type])
    callee = cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{WIDTH}f32")
    return builder.call(callee, [value])


def _nint(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    pattern = builder.bitcast(builder.fadd(value, _constant(_MAGIC, _F32)), _I32.llvm)
    return builder.sub(builder.and_(pattern, _constant(0x7FFFFF, _I32)), _constant(0x400000, _I32))


def _rnear(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    magic = _constant(_MAGIC, _F32)
    return builder.fsub(builder.fadd(value, magic), magic)


def _trunc(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    fits = builder.fcmp_ordered("<", _call(builder, "fabs", value), _constant(2147483648.0, _F32))
    safe = builder.select(fits, value, _constant(0.0, _F32))
    return builder.select(fits, builder.fptosi(safe, _I32.llvm), _constant(-(2**31), _I32))


@intrinsic(prefer_literal=True)
def lev(typing: Any, value: Any, low: Any, high: Any) -> Any:
    """The clamp is done on the magic number's own bits, which saves the way to an integer and back."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        def bound(k: int) -> ir.Value:
            number = context.cast(builder, args[k], sig.args[k], types.int32)
            return splat(builder, builder.add(number, ir.Constant(I32, 0x4B400000)), WIDTH)

        pattern = builder.bitcast(builder.fadd(args[0], _constant(_MAGIC, _F32)), _I32.llvm)
        pattern = builder.or_(builder.and_(pattern, _constant(0x7FFFFF, _I32)), _constant(0x4B000000, _I32))
        pattern = _smaller(builder, _larger(builder, pattern, bound(1)), bound(2))
        return builder.fsub(builder.bitcast(pattern, _F32.llvm), _constant(_MAGIC, _F32))

    return _F32(value, low, high), codegen


def _f2h(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.zext(builder.bitcast(builder.fptrunc(value, _HALF), _I16), _I32.llvm)


def _h2f(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fpext(builder.bitcast(builder.trunc(value, _I16), _HALF), _F32.llvm)


def _smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


WORDS: dict[str, Any] = {
    "ld": ld,
    "st": st,
    "ldb": ldb,
    "stb": stb,
    "cst": cst,
    "take": take,
    "full": full,
    "where": where,
    "any_": any_,
    "lev": lev,
    "put": st,
    "get": get,
    "zeros": _map(_F32, lambda builder, like: _constant(0.0, _F32), 1),
    "izeros": _map(_I32, lambda builder, like: _constant(0, _I32), 1),
    "div": _map(_F32, lambda builder, a, b: builder.fdiv(a, b), 2),
    "sqrt": _map(_F32, lambda builder, v: _call(builder, "sqrt", v), 1),
    "fabs": _map(_F32, lambda builder, v: _call(builder, "fabs", v), 1),
    "nint": _map(_I32, _nint, 1),
    "rnear": _map(_F32, _rnear, 1),
    "trunc": _map(_I32, _trunc, 1),
    "i2f": _map(_F32, lambda builder, v: builder.sitofp(v, _F32.llvm), 1),
    "f2h": _map(_I32, _f2h, 1),
    "h2f": _map(_F32, _h2f, 1),
    "bits": _map(_I32, lambda builder, v: builder.bitcast(v, _I32.llvm), 1),
    "from_bits": _map(_F32, lambda builder, v: builder.bitcast(v, _F32.llvm), 1),
    "imin": _map(_I32, _smaller, 2),
    "imax": _map(_I32, _larger, 2),
}
