"""Tables that stay in registers: the word `pick`, and what the search of a codebook looks up (`cpu_snap`)."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_values import as_index
from quantmill.qkernels.lanes.program import Word
from quantmill.qkernels.lanes.simd import F32, I32, LaneBuilder, call, joined, part, repeated


def lookup16(b: LaneBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    """Entries of a table of sixteen floats that repeats after eight, by the low bits of sixteen indices."""
    if b.processor.lookup == 16:
        return call(b, "llvm.x86.avx512.permvar.sf.512", table.type, table, index)
    eight = part(b, table, 0, 8)
    halves = [part(b, index, first, 8) for first in (0, 8)]
    return joined(b, [call(b, "llvm.x86.avx2.permps", eight.type, eight, half) for half in halves])


def _lookup_eighths(b: LaneBuilder, eighths: list[ir.Value], index: ir.Value) -> ir.Value:
    """AVX2 selects among eight: four tables, then a choice by the index's bits 3 and 4."""
    found = [call(b, "llvm.x86.avx2.permps", e.type, e, index) for e in eighths]
    for bit in (8, 16):
        high = b.icmp_signed("!=", b.and_(index, repeated(bit, index.type)), repeated(0, index.type))
        found = [b.select(high, y, x) for x, y in zip(found[::2], found[1::2], strict=True)]
    return found[0]


def _lookup32(b: LaneBuilder, halves: list[ir.Value], index: ir.Value) -> ir.Value:
    """Entries of a table of 32 by the low five bits of each index."""
    kind = halves[0].type.element
    count = index.type.count
    if b.processor.lookup == 16:
        name = f"llvm.x86.avx512.vpermi2var.{'ps' if kind == F32 else 'd'}.512"
        parts = [part(b, index, first, 16) for first in range(0, count, 16)]
        return joined(b, [call(b, name, halves[0].type, halves[0], p, halves[1]) for p in parts])
    if b.processor.lookup == 8:
        floats = ir.VectorType(F32, 8)
        eighths = [b.bitcast(part(b, half, first, 8), floats) for half in halves for first in (0, 8)]
        parts = [part(b, index, first, 8) for first in range(0, count, 8)]
        found = [_lookup_eighths(b, eighths, p) for p in parts]
        return joined(b, [b.bitcast(f, ir.VectorType(kind, 8)) for f in found])
    table = joined(b, halves)
    low = b.and_(index, repeated(31, index.type))
    result = ir.Constant(ir.VectorType(kind, count), ir.Undefined)
    for lane in range(count):
        entry = b.extract_element(table, b.extract_element(low, I32(lane)))
        result = b.insert_element(result, entry, I32(lane))
    return result


def _pick(b: LaneBuilder, table: ir.Value, first: Any, index: ir.Value) -> ir.Value:
    half = ir.VectorType(table.type.pointee, 16)
    at = b.bitcast(b.gep(table, [as_index(b, first)]), half.as_pointer())
    return _lookup32(b, [b.load(b.gep(at, [I32(k)]), align=4) for k in (0, 1)], index)


pick = Word(_pick)
