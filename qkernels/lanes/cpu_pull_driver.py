"""What a gradient of weights says of their groups, and of where each weight wants to be, as LLVM IR.

    i32 weigh_KIND(weights, made, products, sums, squares, n_rows, n_cols, group)
    i32 wish_KIND(weights, wishes, squares, seen, numbers, along, columns, beyond, n_rows, n_cols, block)

KIND is how weights, and what was made, are stored: f32 or bf16, [n_rows, n_cols], contiguous. group and block are
multiples of LANES. Everything else is float32, but wishes i16 [n_rows, n_cols] and beyond u8 [n_rows, n_cols / block].
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_pull_shape import HALF, KINDS, LANES, LIMIT, TINY
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    ROUNDER,
    LaneBuilder,
    call,
    from_brain,
    function,
    load_run,
    local,
    loop,
    part,
    repeated,
    splat,
    store_run,
)

_FLOATS, _INTS, _WORDS, _TRUTHS = (ir.VectorType(kind, LANES) for kind in (F32, I32, I16, I1))
_STORED = {"f32": F32, "bf16": I16}
assert set(_STORED) == set(KINDS)


def text_of(processor: Processor) -> str:
    """The module of all functions."""
    module = ir.Module("quantmill")
    for kind in KINDS:
        _weigh(module, kind, processor)
        _wish(module, kind, processor)
    return str(module)


def _numbers(b: ir.IRBuilder, array: ir.Value, place: ir.Value, kind: str) -> ir.Value:
    """LANES floats from a place on."""
    if kind == "f32":
        return load_run(b, array, place, _FLOATS, 4)
    return from_brain(b, b.zext(load_run(b, array, place, _WORDS, 2), _INTS))


def _added(b: ir.IRBuilder, lanes: ir.Value) -> ir.Value:
    """The sum of all lanes, halves first."""
    count = LANES
    while count > 1:
        count //= 2
        lanes = b.fadd(part(b, lanes, 0, count), part(b, lanes, count, count))
    return b.extract_element(lanes, I32(0))


def _grow(b: ir.IRBuilder, total: ir.Value, value: ir.Value) -> None:
    b.store(b.fadd(b.load(total), value), total)


def _weigh(module: ir.Module, kind: str, processor: Processor) -> None:
    """products, sums [n_rows, n_cols / group]: Σ weight · made and Σ weight of each group; squares [n_rows]: Σ weight²
    of each row."""
    stored = _STORED[kind]
    b, given = function(module, f"weigh_{kind}", processor, [stored, stored, F32, F32, F32], 3)
    weights, made, products, sums, squares, n_rows, n_cols, group = given
    product, sum, square = (local(b, _FLOATS) for _ in range(3))
    zero = repeated(0.0, _FLOATS)
    n_groups = b.sdiv(n_cols, group)
    with loop(b, I64(0), n_rows) as row:
        b.store(zero, square)
        with loop(b, I64(0), n_groups) as in_row:
            number = b.add(b.mul(row, n_groups), in_row)
            first = b.mul(number, group)
            b.store(zero, product)
            b.store(zero, sum)
            with loop(b, first, b.add(first, group), I64(LANES)) as place:
                weight = _numbers(b, weights, place, kind)
                _grow(b, product, b.fmul(weight, _numbers(b, made, place, kind)))
                _grow(b, sum, weight)
                _grow(b, square, b.fmul(weight, weight))
            b.store(_added(b, b.load(product)), b.gep(products, [number]))
            b.store(_added(b, b.load(sum)), b.gep(sums, [number]))
        b.store(_added(b, b.load(square)), b.gep(squares, [row]))
    b.ret(I32(0))


def _wish(module: ir.Module, kind: str, processor: Processor) -> None:
    """seen [n_rows] goes by share_of_new towards squares / n_cols, the mean squares of the rows' weights. wish -=
    weight · along of its column · factor / √(seen / known), at most `most` either way, rounded; columns [n_cols] +=
    weight²; beyond: 1 where a wish of a block is farther than HALF. numbers: share_of_new, known, factor, most."""
    kinds = [_STORED[kind], I16, F32, F32, F32, F32, F32, I8]
    b, given = function(module, f"wish_{kind}", processor, kinds, 3)
    weights, wishes, squares, seen, numbers, along, columns, beyond, n_rows, n_cols, block = given
    share, known, factor, most = (b.load(b.gep(numbers, [I64(i)])) for i in range(4))
    far = local(b, _TRUTHS)
    high = splat(b, most, LANES)
    low = b.fsub(repeated(0.0, _FLOATS), high)
    n_blocks = b.sdiv(n_cols, block)
    width = b.sitofp(n_cols, F32)
    with loop(b, I64(0), n_rows) as row:
        place = b.gep(seen, [row])
        old, new = b.load(place), b.fdiv(b.load(b.gep(squares, [row])), width)
        mean = b.fadd(old, b.fmul(share, b.fsub(new, old)))
        b.store(mean, place)
        mean = b.fdiv(mean, known)
        mean = b.select(b.fcmp_ordered("<", mean, F32(TINY)), F32(TINY), mean)
        across = splat(b, b.fdiv(factor, call(b, "llvm.sqrt.f32", F32, mean)), LANES)
        with loop(b, I64(0), n_blocks) as in_row:
            b.store(repeated(0, _TRUTHS), far)
            start = b.mul(in_row, block)
            with loop(b, start, b.add(start, block), I64(LANES)) as column:
                place = b.add(b.mul(row, n_cols), column)
                weight = _numbers(b, weights, place, kind)
                squared = b.fadd(load_run(b, columns, column, _FLOATS, 4), b.fmul(weight, weight))
                store_run(b, squared, columns, column, 4)
                change = b.fmul(b.fmul(weight, across), load_run(b, along, column, _FLOATS, 4))
                change = _rounded(b, _between(b, change, low, high))
                wish = b.sub(b.sext(load_run(b, wishes, place, _WORDS, 2), _INTS), change)
                wish = _whole_between(b, wish, -LIMIT, LIMIT)
                store_run(b, b.trunc(wish, _WORDS), wishes, place, 2)
                too_far = b.icmp_signed(">", _size(b, wish), repeated(HALF, _INTS))
                b.store(b.or_(b.load(far), too_far), far)
            found = call(b, f"llvm.vector.reduce.or.v{LANES}i1", I1, b.load(far))
            b.store(b.zext(found, I8), b.gep(beyond, [b.add(b.mul(row, n_blocks), in_row)]))
    b.ret(I32(0))


def _size(b: ir.IRBuilder, whole: ir.Value) -> ir.Value:
    zero = repeated(0, _INTS)
    return b.select(b.icmp_signed("<", whole, zero), b.sub(zero, whole), whole)


def _between(b: ir.IRBuilder, value: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    value = b.select(b.fcmp_ordered("<", value, low), low, value)
    return b.select(b.fcmp_ordered(">", value, high), high, value)


def _whole_between(b: ir.IRBuilder, value: ir.Value, low: int, high: int) -> ir.Value:
    least, most = repeated(low, _INTS), repeated(high, _INTS)
    value = b.select(b.icmp_signed("<", value, least), least, value)
    return b.select(b.icmp_signed(">", value, most), most, value)


def _rounded(b: LaneBuilder, value: ir.Value) -> ir.Value:
    """The nearest whole numbers, ties to even, of floats below 2^22."""
    moved = b.bitcast(b.fadd(value, repeated(ROUNDER, _FLOATS)), _INTS)
    return b.sub(moved, b.bitcast(repeated(ROUNDER, _FLOATS), _INTS))
