"""What a distribution over many words asks of each row of logits, as LLVM IR: the top, Σ exp, a divergence.

    i32 top_KIND(numbers, scales, shifts, values, places, stride, n_rows, n_cols)
    i32 sum_KIND(numbers, scales, shifts, sums, stride, n_rows, n_cols)
    i32 kld_KIND(numbers, scales, shifts, others, other_shifts, floors, sums, stride, other_stride, n_rows, n_cols)

KIND is how a row's numbers are stored, `stride` bytes from row to row: f32, the value is x + shift of the row; u16, it
is scale · x + shift. What is found is f64 or f32 [n_rows, LANES], one a lane, which the caller adds up (of tops: takes
the first of the largest). Terms are float32, their sums float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_likelihood_shape import KINDS, LANES
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    ROUNDER,
    LaneBuilder,
    call,
    function,
    local,
    loop,
    repeated,
    splat,
    store_run,
)

_FLOATS, _DOUBLES, _INTS, _WORDS = (ir.VectorType(kind, LANES) for kind in (F32, F64, I32, I16))
_STORED = {"f32": (F32, 4), "u16": (I16, 2)}
assert set(_STORED) == set(KINDS)
# e^x = 2^n · e^r: n the nearest whole number to x / ln 2, ln 2 in two parts, e^r by a polynomial (Cephes: expf).
_PER_LN2, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_POWERS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LEAST = -87.0  # below, e^x is 0


@dataclass(frozen=True)
class _Side:
    """Rows of one distribution: where they begin, bytes from one to the next, how they are stored."""

    numbers: ir.Value
    stride: ir.Value
    scales: ir.Value
    shifts: ir.Value
    kind: str


def text_of(processor: Processor) -> str:
    """The module of all functions."""
    module = ir.Module("quantmill")
    for kind in KINDS:
        _top(module, kind, processor)
        _sum(module, kind, processor)
        _divergence(module, kind, processor)
    return str(module)


def _values(b: LaneBuilder, side: _Side, row: ir.Value) -> Callable[[ir.Value, ir.Value | None], ir.Value]:
    """What gives LANES values of a row from a column on; of those that a mask leaves out, anything finite."""
    kind, size = _STORED[side.kind]
    start = b.bitcast(b.gep(side.numbers, [b.mul(row, side.stride)]), kind.as_pointer())
    shift = splat(b, b.load(b.gep(side.shifts, [row])), LANES)
    scale = splat(b, b.load(b.gep(side.scales, [row])), LANES) if side.kind == "u16" else None
    run = ir.VectorType(kind, LANES)

    def at(column: ir.Value, mask: ir.Value | None) -> ir.Value:
        place = b.bitcast(b.gep(start, [column]), run.as_pointer())
        if mask is None:
            read = b.load(place, align=size)
        else:
            none = repeated(0, run)
            name = f"llvm.masked.load.v{LANES}{'f32' if kind == F32 else 'i16'}.p0"
            read = call(b, name, run, place, I32(size), mask, none)
        if scale is None:
            return b.fadd(read, shift)
        return b.fadd(b.fmul(scale, b.uitofp(b.zext(read, _INTS), _FLOATS)), shift)

    return at


def _each_column(b: LaneBuilder, n_cols: ir.Value, step: Callable[[ir.Value, ir.Value | None], None]) -> None:
    """step(column, mask) through a row, LANES at a time; the last step is masked, also where no column is left."""
    whole = b.and_(n_cols, I64(-LANES))
    with loop(b, I64(0), whole, I64(LANES)) as column:
        step(column, None)
    left = splat(b, b.trunc(b.sub(n_cols, whole), I32), LANES)
    step(whole, b.icmp_signed("<", ir.Constant(_INTS, list(range(LANES))), left))


def _kept(b: LaneBuilder, mask: ir.Value | None, value: ir.Value, otherwise: ir.Value) -> ir.Value:
    return value if mask is None else b.select(mask, value, otherwise)


def _top(module: ir.Module, kind: str, processor: Processor) -> None:
    """values f32, places i32 [n_rows, LANES]: the largest of each lane's columns, and the first that has it."""
    b, given = function(module, f"top_{kind}", processor, [I8, F32, F32, F32, I32], 3)
    numbers, scales, shifts, values, places, stride, n_rows, n_cols = given
    best, where = local(b, _FLOATS), local(b, _INTS)
    with loop(b, I64(0), n_rows) as row:
        at = _values(b, _Side(numbers, stride, scales, shifts, kind), row)
        b.store(repeated(float("-inf"), _FLOATS), best)
        b.store(repeated(0, _INTS), where)

        def step(column: ir.Value, mask: ir.Value | None, at: Callable[..., ir.Value] = at) -> None:
            value = _kept(b, mask, at(column, mask), repeated(float("-inf"), _FLOATS))
            larger = b.fcmp_ordered(">", value, b.load(best))
            b.store(b.select(larger, value, b.load(best)), best)
            b.store(b.select(larger, splat(b, b.trunc(column, I32), LANES), b.load(where)), where)

        _each_column(b, n_cols, step)
        start = b.mul(row, I64(LANES))
        store_run(b, b.load(best), values, start, 4)
        lanes = ir.Constant(_INTS, list(range(LANES)))
        store_run(b, b.add(b.load(where), lanes), places, start, 4)
    b.ret(I32(0))


def _sum(module: ir.Module, kind: str, processor: Processor) -> None:
    """sums f64 [n_rows, LANES]: Σ e^value; the shifts are to make the largest value 0."""
    b, given = function(module, f"sum_{kind}", processor, [I8, F32, F32, F64], 3)
    numbers, scales, shifts, sums, stride, n_rows, n_cols = given
    total = local(b, _DOUBLES)
    with loop(b, I64(0), n_rows) as row:
        at = _values(b, _Side(numbers, stride, scales, shifts, kind), row)
        b.store(repeated(0.0, _DOUBLES), total)

        def step(column: ir.Value, mask: ir.Value | None, at: Callable[..., ir.Value] = at) -> None:
            term = _kept(b, mask, exp(b, at(column, mask)), repeated(0.0, _FLOATS))
            b.store(b.fadd(b.load(total), b.fpext(term, _DOUBLES)), total)

        _each_column(b, n_cols, step)
        store_run(b, b.load(total), sums, b.mul(row, I64(LANES)), 8)
    b.ret(I32(0))


def _divergence(module: ir.Module, kind: str, processor: Processor) -> None:
    """sums f64 [n_rows, LANES]: Σ p (log p - log q), where log p is above the floor; the rows' values are log p, those
    of the others, f32, log q."""
    b, given = function(module, f"kld_{kind}", processor, [I8, F32, F32, I8, F32, F32, F64], 4)
    numbers, scales, shifts, others, other_shifts, floors, sums, stride, other_stride, n_rows, n_cols = given
    total = local(b, _DOUBLES)
    floor = splat(b, b.load(floors), LANES)
    zero = repeated(0.0, _FLOATS)
    with loop(b, I64(0), n_rows) as row:
        base = _values(b, _Side(numbers, stride, scales, shifts, kind), row)
        other = _values(b, _Side(others, other_stride, other_shifts, other_shifts, "f32"), row)
        b.store(repeated(0.0, _DOUBLES), total)

        def step(
            column: ir.Value,
            mask: ir.Value | None,
            base: Callable[..., ir.Value] = base,
            other: Callable[..., ir.Value] = other,
        ) -> None:
            log_p, log_q = base(column, mask), other(column, mask)
            term = b.fmul(exp(b, log_p), b.fsub(log_p, log_q))
            term = b.select(b.fcmp_ordered(">", log_p, floor), term, zero)
            b.store(b.fadd(b.load(total), b.fpext(_kept(b, mask, term, zero), _DOUBLES)), total)

        _each_column(b, n_cols, step)
        store_run(b, b.load(total), sums, b.mul(row, I64(LANES)), 8)
    b.ret(I32(0))


def exp(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e^x of x ≤ 1 or so, to some 1e-7 of it."""

    def all(value: float) -> ir.Constant:
        return repeated(value, _FLOATS)

    tiny = b.fcmp_ordered("<", x, all(_LEAST))
    x = b.select(tiny, all(_LEAST), x)
    rounded = b.fadd(b.fmul(x, all(_PER_LN2)), all(ROUNDER))
    n = b.fsub(rounded, all(ROUNDER))
    r = b.fsub(b.fsub(x, b.fmul(n, all(_LN2_HIGH))), b.fmul(n, all(_LN2_LOW)))
    power = all(_POWERS[0])
    for coefficient in _POWERS[1:]:
        power = b.fadd(b.fmul(power, r), all(coefficient))
    power = b.fadd(b.fadd(b.fmul(power, b.fmul(r, r)), r), all(1.0))
    bits = b.add(b.bitcast(power, _INTS), b.shl(b.bitcast(rounded, _INTS), repeated(23, _INTS)))
    return b.select(tiny, all(0.0), b.bitcast(bits, _FLOATS))
