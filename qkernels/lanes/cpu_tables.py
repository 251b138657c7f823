"""The words that look things up: small tables in registers, and the nearest entry of a codebook.

`nearest` turns the lanes round: where a lane's code is off the grid, its list of neighbours is walked sixteen at a
time, with a neighbour in each place of a vector. A neighbour's distance is a sum of terms that depend on one digit
each, so the terms of all digits are computed once and a neighbour only selects among them.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from qkernels.lanes import cpu_words
from qkernels.lanes.cpu_words import WIDTH, any_, cst, ld, st, take
from qkernels.lanes.simd import ELEMENTS, I32, OF_DTYPE, Lanes, data_pointer, load, splat

_FEATURES = llvm.get_host_cpu_features()
_AVX512, _AVX2 = _FEATURES.get("avx512f", False), _FEATURES.get("avx2", False)
# Neighbours a vector; lists are padded to a multiple of it.
RUN = 16
_RUN_I32, _RUN_F32 = ir.VectorType(I32, RUN), ir.VectorType(ir.FloatType(), RUN)
_bits = cpu_words.WORDS["bits"]


def _part(builder: ir.IRBuilder, value: ir.Value, first: int, count: int) -> ir.Value:
    mask = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _joined(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Vectors of equal length, a power of two of them, end to end."""
    while len(parts) > 1:
        count = parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, 2 * count), list(range(2 * count)))
        parts = [builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _intrinsic(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def _pick32(builder: ir.IRBuilder, table: list[ir.Value], index: ir.Value) -> ir.Value:
    """Entries of a table of 32 (as two halves) by the low five bits of each index."""
    kind = table[0].type.element
    letter = "ps" if isinstance(kind, ir.FloatType) else "d"
    parts = []
    if _AVX512:
        for first in range(0, index.type.count, 16):
            part = _part(builder, index, first, 16)
            name = f"llvm.x86.avx512.vpermi2var.{letter}.512"
            parts.append(_intrinsic(builder, name, table[0].type, table[0], part, table[1]))
        return _joined(builder, parts)
    if _AVX2:
        floats = ir.VectorType(ir.FloatType(), 8)
        eighths = [
            builder.bitcast(_part(builder, half, first, 8), floats) for half in table for first in (0, 8)
        ]
        for first in range(0, index.type.count, 8):
            part = _part(builder, index, first, 8)
            found = [_intrinsic(builder, "llvm.x86.avx2.permps", floats, e, part) for e in eighths]
            for bit in (8, 16):
                mask = builder.and_(part, ir.Constant(part.type, [bit] * 8))
                high = builder.icmp_signed("!=", mask, ir.Constant(part.type, [0] * 8))
                found = [builder.select(high, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
            parts.append(builder.bitcast(found[0], ir.VectorType(kind, 8)))
        return _joined(builder, parts)
    whole = _joined(builder, table)
    low = builder.and_(index, ir.Constant(index.type, [31] * index.type.count))
    result = ir.Constant(ir.VectorType(kind, index.type.count), ir.Undefined)
    for lane in range(index.type.count):
        place = ir.Constant(I32, lane)
        entry = builder.extract_element(whole, builder.extract_element(low, place))
        result = builder.insert_element(result, entry, place)
    return result


@intrinsic(prefer_literal=True)
def pick(typing: Any, table: Any, first: Any, index: Any) -> Any:
    lanes = Lanes(OF_DTYPE[table.dtype], WIDTH)
    half = Lanes(lanes.element, 16)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        start = context.cast(builder, args[1], sig.args[1], types.intp)
        halves = [load(builder, pointer, builder.add(start, start.type(k)), half) for k in (0, 16)]
        return _pick32(builder, halves, args[2])

    return lanes(table, first, index), codegen


def _terms(builder: ir.IRBuilder, x: ir.Value, w: ir.Value, scaled: ir.Value) -> ir.Value:
    """w·d·d for each of `scaled`, the digits' scaled values."""
    d = builder.fsub(scaled, x)
    return builder.fmul(builder.fmul(w, d), d)


def _digits(builder: ir.IRBuilder, codes: ir.Value, digit: int, n_bits: int) -> ir.Value:
    """One digit of each code, as floats."""
    shift = ir.Constant(_RUN_I32, [n_bits * digit] * RUN)
    low = builder.and_(builder.lshr(codes, shift), ir.Constant(_RUN_I32, [(1 << n_bits) - 1] * RUN))
    return builder.sitofp(low, _RUN_F32)


def _select(builder: ir.IRBuilder, table: ir.Value, codes: ir.Value, digit: int, n_bits: int) -> ir.Value:
    """The table's entry for one digit of each code; it repeats for what stands above the digit."""
    index = builder.lshr(codes, ir.Constant(_RUN_I32, [n_bits * digit] * RUN))
    if _AVX512:
        return _intrinsic(builder, "llvm.x86.avx512.permvar.sf.512", _RUN_F32, table, index)
    eight = _part(builder, table, 0, 8)
    halves = [
        _intrinsic(builder, "llvm.x86.avx2.permps", eight.type, eight, _part(builder, index, first, 8))
        for first in (0, 8)
    ]
    return _joined(builder, halves)


def _search(dim: int, n_bits: int, apart: int) -> Any:
    """The code of the nearest of `runs` · 16 neighbours, the first of equally near ones.

    A digit's value is `apart` · digit + `low`.
    """

    @intrinsic
    def search(
        typing: Any, x: Any, w: Any, place: Any, scale: Any, low: Any, near: Any, start: Any, runs: Any
    ) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            xs, ws, codes_at = (data_pointer(context, builder, sig.args[k], args[k]) for k in (0, 1, 5))
            place, start, runs = (args[k] for k in (2, 6, 7))
            step, lowest = (splat(builder, args[k], RUN) for k in (3, 4))

            def scaled(digits: ir.Value) -> ir.Value:
                stretched = builder.fmul(digits, ir.Constant(_RUN_F32, [apart] * RUN))
                return builder.fmul(step, builder.fadd(stretched, lowest))

            def element(array: ir.Value, k: int) -> ir.Value:
                index = builder.add(place, place.type(k * WIDTH))
                return splat(builder, builder.load(builder.gep(array, [index])), RUN)

            if _AVX512 or _AVX2:
                all_digits = scaled(ir.Constant(_RUN_F32, [i % (1 << n_bits) for i in range(RUN)]))
                tables = [_terms(builder, element(xs, k), element(ws, k), all_digits) for k in range(dim)]

                def term(codes: ir.Value, k: int) -> ir.Value:
                    return _select(builder, tables[k], codes, k, n_bits)
            else:
                pairs = [(element(xs, k), element(ws, k)) for k in range(dim)]

                def term(codes: ir.Value, k: int) -> ir.Value:
                    return _terms(builder, *pairs[k], scaled(_digits(builder, codes, k, n_bits)))

            best = cgutils.alloca_once_value(builder, ir.Constant(_RUN_I32, [0x7FFFFFFF] * RUN))
            best_code = cgutils.alloca_once(builder, _RUN_I32)
            best_run = cgutils.alloca_once_value(builder, ir.Constant(_RUN_I32, [0] * RUN))
            with cgutils.for_range(builder, runs) as loop:
                at = builder.add(start, builder.mul(loop.index, loop.index.type(RUN)))
                codes = load(builder, codes_at, at, Lanes("i32", RUN))
                distance = term(codes, 0)
                for k in range(1, dim):
                    distance = builder.fadd(distance, term(codes, k))
                # floats that are not negative are ordered as integers are
                ordered = builder.bitcast(distance, _RUN_I32)
                nearer = builder.icmp_signed("<", ordered, builder.load(best))
                run = splat(builder, builder.trunc(loop.index, I32), RUN)
                builder.store(builder.select(nearer, ordered, builder.load(best)), best)
                builder.store(builder.select(nearer, codes, builder.load(best_code)), best_code)
                builder.store(builder.select(nearer, run, builder.load(best_run)), best_run)
            nearest = builder.load(best)
            least = _intrinsic(builder, f"llvm.vector.reduce.smin.v{RUN}i32", I32, nearest)
            ties = builder.icmp_signed("==", nearest, splat(builder, least, RUN))
            # position in the list: of equally near neighbours the first wins
            lane = ir.Constant(_RUN_I32, list(range(RUN)))
            position = builder.or_(
                builder.shl(builder.load(best_run), ir.Constant(_RUN_I32, [4] * RUN)), lane
            )
            masked = builder.select(ties, position, ir.Constant(_RUN_I32, [0x7FFFFFFF] * RUN))
            first = _intrinsic(builder, f"llvm.vector.reduce.smin.v{RUN}i32", I32, masked)
            return builder.load(builder.gep(codes_at, [builder.add(start, builder.zext(first, start.type))]))

        return types.int32(x, w, place, scale, low, near, start, runs), codegen

    return search


_search4, _search8, _search_shifted = _search(4, 3, 2), _search(8, 2, 2), _search(8, 2, 1)
_ONE = np.float32(1)


@intrinsic
def _lane_bits(typing: Any, mask: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.zext(builder.bitcast(args[0], ir.IntType(WIDTH)), ir.IntType(64))

    return types.uint64(mask), codegen


@intrinsic
def _lowest_bit(typing: Any, mask: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(mask), codegen


@intrinsic
def _set(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def _float_of(typing: Any, pattern: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.bitcast(args[0], ELEMENTS["f32"])

    return types.float32(pattern), codegen


@njit(error_model="numpy", nogil=True, forceinline=True)
def nearest(u, X, ROOT, place, scale, LISTS, NEAR, NOTES, slot, DIM, BITS):
    entry: Any = take(LISTS, u)  # type: ignore[call-arg]
    off = entry != 0
    if any_(off):
        st(NOTES, 0, entry)
        st(NOTES, 1, _bits(scale))
        st(NOTES, 2, u)
        waiting = _lane_bits(off)
        while waiting != 0:
            lane = _lowest_bit(waiting)
            waiting &= waiting - types.uint64(1)
            listed = types.int64(cst(NOTES, lane))
            step = _float_of(cst(NOTES, WIDTH + lane))
            start = (listed >> 10) * RUN
            runs = ((listed & 1023) + (RUN - 1)) // RUN
            if DIM == 4:
                code = _search4(X, ROOT, place * WIDTH + lane, step, _ONE, NEAR, start, runs)
            else:
                code = _search8(X, ROOT, place * WIDTH + lane, step, _ONE, NEAR, start, runs)
            _set(NOTES, 2 * WIDTH + lane, code)
        u = ld(NOTES, 2)
    return u


@njit(error_model="numpy", nogil=True, forceinline=True)
def nearest_shifted(u, X, WEIGHT, place, scale, low, LISTS, NEAR, NOTES):
    entry: Any = take(LISTS, u)  # type: ignore[call-arg]
    off = entry != 0
    if any_(off):
        st(NOTES, 0, entry)
        st(NOTES, 1, _bits(scale))
        st(NOTES, 2, u)
        st(NOTES, 3, _bits(low))
        waiting = _lane_bits(off)
        while waiting != 0:
            lane = _lowest_bit(waiting)
            waiting &= waiting - types.uint64(1)
            listed = types.int64(cst(NOTES, lane))
            step = _float_of(cst(NOTES, WIDTH + lane))
            lowest = _float_of(cst(NOTES, 3 * WIDTH + lane))
            start = (listed >> 10) * RUN
            runs = ((listed & 1023) + (RUN - 1)) // RUN
            code = _search_shifted(X, WEIGHT, place * WIDTH + lane, step, lowest, NEAR, start, runs)
            _set(NOTES, 2 * WIDTH + lane, code)
        u = ld(NOTES, 2)
    return u


@njit
def forget(NOTES, slot):
    pass


WORDS = {
    **cpu_words.WORDS,
    "pick": pick,
    "nearest": nearest,
    "nearest_shifted": nearest_shifted,
    "forget": forget,
}
