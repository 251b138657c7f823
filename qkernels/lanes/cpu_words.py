"""The vocabulary as LLVM IR on explicit vectors of lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_values import as_either, as_index, as_lanes
from quantmill.qkernels.lanes.native import ALIGNMENT
from quantmill.qkernels.lanes.program import Word
from quantmill.qkernels.lanes.simd import (
    F32,
    I32,
    I64,
    ROUNDER,
    LaneBuilder,
    call,
    from_half,
    repeated,
    size_of,
    splat,
    to_half,
)


def _place(b: LaneBuilder, array: ir.Value, i: Any) -> ir.Value:
    return b.gep(array, [as_index(b, i)])


def _alignment(vector: ir.VectorType) -> int:
    return min(size_of(vector), ALIGNMENT)


def ld(b: LaneBuilder, array: ir.Value, i: Any) -> ir.Value:
    """From an array of numbers, the same for all lanes."""
    kind = array.type.pointee
    if not isinstance(kind, ir.VectorType):
        return splat(b, b.load(_place(b, array, i)), b.width)
    return b.load(_place(b, array, i), align=_alignment(kind))


def st(b: LaneBuilder, array: ir.Value, i: Any, value: Any) -> None:
    kind = array.type.pointee
    b.store(as_lanes(b, value, kind), _place(b, array, i), align=_alignment(kind))


def _ldb(b: LaneBuilder, array: ir.Value, i: Any) -> ir.Value:
    return b.zext(b.load(_place(b, array, i), align=_alignment(b.bytes)), b.ints)


def _stb(b: LaneBuilder, array: ir.Value, i: Any, value: Any) -> None:
    b.store(b.trunc(as_lanes(b, value, b.ints), b.bytes), _place(b, array, i), align=_alignment(b.bytes))


def number_at(b: LaneBuilder, array: ir.Value, i: Any) -> ir.Value:
    """The address of number i of a table, or of an array of lanes in its flat order."""
    kind = array.type.pointee
    if isinstance(kind, ir.VectorType):
        array = b.bitcast(array, kind.element.as_pointer())
    return _place(b, array, i)


def cst(b: LaneBuilder, table: ir.Value, i: Any) -> ir.Value:
    """A float, or an integer as i64; of an array of lanes, number i in its flat order."""
    value = b.load(number_at(b, table, i))
    return value if value.type == F32 else b.sext(value, I64)


def take(b: LaneBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    element = table.type.pointee
    result = ir.VectorType(element, b.width)
    base = splat(b, b.ptrtoint(table, I64), b.width)
    offset = b.mul(b.sext(index, base.type), repeated(4, base.type))
    pointers = b.inttoptr(b.add(base, offset), ir.VectorType(element.as_pointer(), b.width))
    name = f"llvm.masked.gather.v{b.width}{'f32' if element == F32 else 'i32'}.v{b.width}p0"
    everywhere, undefined = repeated(1, b.truths), ir.Constant(result, ir.Undefined)
    return call(b, name, result, pointers, I32(4), everywhere, undefined)


def where(b: LaneBuilder, mask: ir.Value, yes: Any, no: Any) -> ir.Value:
    return b.select(mask, *as_either(b, yes, no))


def _any(b: LaneBuilder, mask: ir.Value) -> ir.Value:
    packed = b.bitcast(mask, ir.IntType(b.width))
    return b.icmp_unsigned("!=", packed, packed.type(0))


def _of_float(name: str) -> Word:
    return Word(lambda b, v: call(b, f"llvm.{name}.v{b.width}f32", b.floats, as_lanes(b, v, b.floats)))


def to_bits(b: LaneBuilder, value: Any) -> ir.Value:
    return b.bitcast(as_lanes(b, value, b.floats), b.ints)


def from_bits(b: LaneBuilder, pattern: ir.Value) -> ir.Value:
    return b.bitcast(pattern, b.floats)


def _nint(b: LaneBuilder, value: ir.Value, rounder: float = ROUNDER) -> ir.Value:
    """Of a processor's own NaN, 0x7fc00000 or 0xffc00000, this is 0 as it is."""
    pattern = to_bits(b, b.fadd(value, repeated(rounder, b.floats)))
    return b.sub(b.and_(pattern, repeated(0x7FFFFF, b.ints)), repeated(0x400000, b.ints))


def _rnear(b: LaneBuilder, value: ir.Value) -> ir.Value:
    magic = repeated(ROUNDER, b.floats)
    return b.fsub(b.fadd(value, magic), magic)


def _trunc(b: LaneBuilder, value: ir.Value) -> ir.Value:
    size = call(b, f"llvm.fabs.v{b.width}f32", b.floats, value)
    fits = b.fcmp_ordered("<", size, repeated(2147483648.0, b.floats))
    safe = b.select(fits, value, repeated(0.0, b.floats))
    return b.select(fits, b.fptosi(safe, b.ints), repeated(-(2**31), b.ints))


def _lev(b: LaneBuilder, value: ir.Value, low: int, high: int) -> ir.Value:
    """The clamp is done on the magic number's own bits, which saves the way to an integer and back."""
    pattern = to_bits(b, b.fadd(value, repeated(ROUNDER, b.floats)))
    pattern = b.or_(b.and_(pattern, repeated(0x7FFFFF, b.ints)), repeated(0x4B000000, b.ints))
    lowest, highest = (repeated(bound + 0x4B400000, b.ints) for bound in (low, high))
    pattern = _smaller(b, _larger(b, pattern, lowest), highest)
    return b.fsub(from_bits(b, pattern), repeated(ROUNDER, b.floats))


def _smaller(b: LaneBuilder, left: Any, right: Any) -> ir.Value:
    x, y = as_either(b, left, right)
    return b.select(b.icmp_signed("<", x, y), x, y)


def _larger(b: LaneBuilder, left: Any, right: Any) -> ir.Value:
    x, y = as_either(b, left, right)
    return b.select(b.icmp_signed(">", x, y), x, y)


def _div(b: LaneBuilder, left: Any, right: Any) -> ir.Value:
    return b.fdiv(as_lanes(b, left, b.floats), as_lanes(b, right, b.floats))


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "ld": ld,
    "st": st,
    "ldb": _ldb,
    "stb": _stb,
    "cst": cst,
    "take": take,
    "full": lambda b, like, value: as_lanes(b, value, b.floats),
    "where": where,
    "any_": _any,
    "lev": _lev,
    "put": st,
    "get": lambda b, array, i, value: ld(b, array, i),
    "zeros": lambda b, like: repeated(0.0, b.floats),
    "number": lambda b, like, j: as_lanes(b, j, b.ints),
    "izeros": lambda b, like: repeated(0, b.ints),
    "div": _div,
    "neg": lambda b, v: b.fneg(as_lanes(b, v, b.floats)),
    "nint": _nint,
    "nhalf": lambda b, value: _nint(b, value, 2 * ROUNDER),
    "rnear": _rnear,
    "trunc": _trunc,
    "i2f": lambda b, v: b.sitofp(as_lanes(b, v, b.ints), b.floats),
    "f2h": lambda b, v: to_half(b, as_lanes(b, v, b.floats)),
    "h2f": from_half,
    "bits": to_bits,
    "from_bits": from_bits,
    "imin": _smaller,
    "imax": _larger,
}
WORDS: Mapping[str, Any] = {
    **{name: Word(build) for name, build in _BUILDERS.items()},
    "sqrt": _of_float("sqrt"),
    "fabs": _of_float("fabs"),
}
