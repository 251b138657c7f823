"""Tables that stay in registers: the word `pick`, and what the search of a codebook looks up (`cpu_snap`)."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from qkernels.lanes.cpu_words import WIDTH
from qkernels.lanes.simd import I32, OF_DTYPE, Lanes, data_pointer, load

_FEATURES = llvm.get_host_cpu_features()
_AVX512 = bool(_FEATURES.get("avx512f"))
_AVX2 = bool(_FEATURES.get("avx2"))
# How many floats a vector of indices can select from; where it is none, values are computed again.
HAS_LOOKUP = 16 if _AVX512 else 8 if _AVX2 else 0
_FLOAT = ir.FloatType()


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """One of LLVM's own functions."""
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def part(builder: ir.IRBuilder, value: ir.Value, first: int, count: int) -> ir.Value:
    mask = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _joined(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Vectors of equal length, a power of two of them, end to end."""
    while len(parts) > 1:
        count = parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, 2 * count), list(range(2 * count)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def lookup16(builder: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """Entries of a table of sixteen floats that repeats after eight, by the low bits of sixteen indices."""
    if _AVX512:
        return call(builder, "llvm.x86.avx512.permvar.sf.512", table.type, table, index)
    eight = part(builder, table, 0, 8)
    halves = [part(builder, index, first, 8) for first in (0, 8)]
    return _joined(
        builder, [call(builder, "llvm.x86.avx2.permps", eight.type, eight, half) for half in halves]
    )


def _lookup_eighths(builder: ir.IRBuilder, eighths: list[ir.Value], index: ir.Value) -> ir.Value:
    """AVX2 selects among eight: four tables, then a choice by the index's bits 3 and 4."""
    found = [call(builder, "llvm.x86.avx2.permps", e.type, e, index) for e in eighths]
    for bit in (8, 16):
        mask = builder.and_(index, ir.Constant(index.type, [bit] * 8))
        high = builder.icmp_signed("!=", mask, ir.Constant(index.type, [0] * 8))
        found = [builder.select(high, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
    return found[0]


def _lookup32(builder: ir.IRBuilder, halves: list[ir.Value], index: ir.Value) -> ir.Value:
    """Entries of a table of 32 by the low five bits of each index."""
    kind = halves[0].type.element
    count = index.type.count
    if _AVX512:
        name = f"llvm.x86.avx512.vpermi2var.{'ps' if kind == _FLOAT else 'd'}.512"
        parts = [part(builder, index, first, 16) for first in range(0, count, 16)]
        return _joined(builder, [call(builder, name, halves[0].type, halves[0], p, halves[1]) for p in parts])
    if _AVX2:
        floats = ir.VectorType(_FLOAT, 8)
        eighths = [
            builder.bitcast(part(builder, half, first, 8), floats) for half in halves for first in (0, 8)
        ]
        parts = [part(builder, index, first, 8) for first in range(0, count, 8)]
        found = [_lookup_eighths(builder, eighths, p) for p in parts]
        return _joined(builder, [builder.bitcast(f, ir.VectorType(kind, 8)) for f in found])
    table = _joined(builder, halves)
    low = builder.and_(index, ir.Constant(index.type, [31] * count))
    result = ir.Constant(ir.VectorType(kind, count), ir.Undefined)
    for lane in range(count):
        entry = builder.extract_element(table, builder.extract_element(low, I32(lane)))
        result = builder.insert_element(result, entry, I32(lane))
    return result


@intrinsic(prefer_literal=True)
def pick(typing: Any, table: Any, first: Any, index: Any) -> Any:
    lanes = Lanes(OF_DTYPE[table.dtype], WIDTH)
    half = Lanes(lanes.element, 16)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        start = context.cast(builder, args[1], sig.args[1], types.intp)
        halves = [load(builder, pointer, builder.add(start, start.type(k)), half) for k in (0, 16)]
        return _lookup32(builder, halves, args[2])

    return lanes(table, first, index), codegen
