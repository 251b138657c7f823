"""Values of the lane language: numbers known while compiling and LLVM values, brought to one kind, and operators."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes.program import LaneError, folded
from quantmill.qkernels.lanes.simd import F32, F64, I1, I64, LaneBuilder, is_lanes, repeated, splat


def as_lanes(b: LaneBuilder, value: Any, vector: ir.VectorType) -> ir.Value:
    """An operand as lanes of a kind; a number is rounded to it first."""
    if is_lanes(value):
        return value
    if not isinstance(value, ir.Value):
        return repeated(float(value) if vector.element == F32 else int(value), vector)
    if vector.element != F32:
        scalar = b.trunc(value, vector.element) if value.type == I64 else value
    elif value.type == I64:
        scalar = b.sitofp(value, F32)
    else:
        scalar = b.fptrunc(value, F32) if value.type == F64 else value
    return splat(b, scalar, vector.count)


def as_index(b: LaneBuilder, value: Any) -> ir.Value:
    """An integer for all lanes, as LLVM's i64."""
    return value if isinstance(value, ir.Value) else I64(value)


def as_either(b: LaneBuilder, left: Any, right: Any) -> tuple[ir.Value, ir.Value]:
    """Two operands as lanes of one kind: that of the one which is lanes, else integers if both are."""
    vectors = [v.type for v in (left, right) if is_lanes(v)]
    whole = all(isinstance(v, int) or (isinstance(v, ir.Value) and v.type == I64) for v in (left, right))
    vector = vectors[0] if vectors else b.ints if whole else b.floats
    return as_lanes(b, left, vector), as_lanes(b, right, vector)


# For each operator: LLVM's for floats, LLVM's for integers.
_BINARY: Mapping[type[ast.operator], tuple[str | None, str | None]] = {
    ast.Add: ("fadd", "add"),
    ast.Sub: ("fsub", "sub"),
    ast.Mult: ("fmul", "mul"),
    ast.FloorDiv: (None, None),
    ast.BitAnd: (None, "and_"),
    ast.BitOr: (None, "or_"),
    ast.BitXor: (None, "xor"),
    ast.LShift: (None, "shl"),
    ast.RShift: (None, "ashr"),
}
_COMPARE: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def _alike(b: LaneBuilder, left: Any, right: Any) -> tuple[ir.Value, ir.Value]:
    """Two operands of which one is an LLVM value, as values of one kind: lanes, else f64, else i64."""
    vectors = [v.type for v in (left, right) if is_lanes(v)]
    if vectors:
        vector = vectors[0]
        return as_lanes(b, left, vector), as_lanes(b, right, vector)
    values = [v for v in (left, right) if isinstance(v, ir.Value)]
    kinds = {v.type for v in values}
    if kinds == {I1}:
        return left, right
    if kinds == {I64} and not any(isinstance(v, float) for v in (left, right)):
        return as_index(b, left), as_index(b, right)
    return _as_double(b, left), _as_double(b, right)


def _as_double(b: LaneBuilder, value: Any) -> ir.Value:
    if not isinstance(value, ir.Value):
        return F64(float(value))
    if value.type == I64:
        return b.sitofp(value, F64)
    return b.fpext(value, F64) if value.type == F32 else value


def _is_float(value: ir.Value) -> bool:
    return getattr(value.type, "element", value.type) in (F32, F64)


def binary(b: LaneBuilder, op: type[ast.operator], left: Any, right: Any) -> Any:
    if not isinstance(left, ir.Value) and not isinstance(right, ir.Value):
        return folded(op, left, right)
    of_floats, of_ints = _BINARY[op]
    x, y = _alike(b, left, right)
    name = of_floats if _is_float(x) else of_ints
    if name is None:
        raise LaneError(f"{op.__name__} of {x.type}")
    return getattr(b, name)(x, y)


def compare(b: LaneBuilder, op: type[ast.cmpop], left: Any, right: Any) -> Any:
    if not isinstance(left, ir.Value) and not isinstance(right, ir.Value):
        return folded(op, left, right)
    sign = _COMPARE[op]
    x, y = _alike(b, left, right)
    if not _is_float(x):
        return b.icmp_signed(sign, x, y)
    # C's != is true for NaN, the other comparisons are false.
    return (b.fcmp_unordered if sign == "!=" else b.fcmp_ordered)(sign, x, y)


def unary(b: LaneBuilder, op: type[ast.unaryop], operand: Any) -> Any:
    if op is ast.Invert:
        return b.not_(operand) if isinstance(operand, ir.Value) else ~operand
    if op is not ast.USub:
        raise LaneError(f"{op.__name__} is not in the lane language")
    if isinstance(operand, ir.Value):
        raise LaneError("- of a value: write neg")
    return -operand
