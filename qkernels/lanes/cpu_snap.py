"""The CPU's words for the nearest entries of a codebook: searches one by one, and as few as possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import extending, types

from qkernels.lanes import cpu_tables, cpu_words
from qkernels.lanes.compiled import inner
from qkernels.lanes.cpu_search import RUN, Group, Nearest, stays_until
from qkernels.lanes.cpu_tables import call, part
from qkernels.lanes.cpu_words import WIDTH
from qkernels.lanes.simd import I32, Lanes, data_pointer

_FLOAT = ir.FloatType()
_LANE_BITS = WIDTH.bit_length() - 1
cst, ld, st, take, where = (cpu_words.WORDS[word] for word in ("cst", "ld", "st", "take", "where"))
_to_bits, _from_bits = cpu_words.WORDS["bits"], cpu_words.WORDS["from_bits"]
intrinsic: Any = extending.intrinsic


def _search(dim: int, bits: int) -> Any:
    """search(x, w, group, scale, near, start, runs, notes, note): note the nearest code, and how long it stays so."""

    @intrinsic
    def search(
        typing: Any,
        x: Any,
        w: Any,
        group: Any,
        scale: Any,
        near: Any,
        start: Any,
        runs: Any,
        notes: Any,
        note: Any,
    ) -> Any:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            xs, ws, codes, notes = (data_pointer(context, b, sig.args[k], args[k]) for k in (0, 1, 4, 7))
            scale, runs = args[3], args[6]
            group = Group(b, b.gep(xs, [args[2]]), b.gep(ws, [args[2]]), scale, (dim, bits), 2.0, _FLOAT(1.0))
            list_at = b.gep(codes, [args[5]])
            code_at = b.gep(notes, [args[8]])
            until_at = b.gep(code_at, [I32(WIDTH)])
            with b.if_else(b.icmp_signed("==", runs, runs.type(1)), likely=True) as branches:
                for branch, count in zip(branches, (None, runs), strict=True):
                    with branch:
                        nearest = Nearest(b, group, list_at, count)
                        b.store(nearest.code, code_at)
                        b.store(b.bitcast(stays_until(b, scale, nearest), I32), until_at)
            return context.get_dummy_value()

        return types.void(x, w, group, scale, near, start, runs, notes, note), codegen

    return search


_search4, _search8 = _search(4, 3), _search(8, 2)


@intrinsic
def _search_shifted(
    typing: Any, x: Any, w: Any, group: Any, scale: Any, low: Any, near: Any, start: Any, runs: Any
) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        xs, ws, codes = (data_pointer(context, b, sig.args[k], args[k]) for k in (0, 1, 5))
        group = Group(b, b.gep(xs, [args[2]]), b.gep(ws, [args[2]]), args[3], (8, 2), 1.0, args[4])
        return Nearest(b, group, b.gep(codes, [args[6]]), args[7]).code

    return types.int32(x, w, group, scale, low, near, start, runs), codegen


def _constant_lanes(values: list[int]) -> Callable[..., Any]:
    lanes = Lanes("i32", WIDTH)

    @intrinsic
    def constant(typing: Any, like: Any) -> Any:
        return lanes(like), lambda context, builder, sig, args: ir.Constant(lanes.llvm, values)

    return constant


_lane_numbers = _constant_lanes(list(range(WIDTH)))
_no_code = _constant_lanes([-1] * WIDTH)


@intrinsic
def _queue(typing: Any, array: Any, end: Any, mask: Any, items: Any) -> Any:
    """Append the items of the lanes that `mask` holds; the new end."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        end = args[1]
        for first in range(0, WIDTH, RUN):
            mask, items = (part(builder, args[k], first, RUN) for k in (2, 3))
            place = builder.gep(pointer, [end])
            call(builder, f"llvm.masked.compressstore.v{RUN}i32", ir.VoidType(), items, place, mask)
            count = builder.ctpop(builder.bitcast(mask, ir.IntType(RUN)))
            end = builder.add(end, builder.zext(count, end.type))
        return end

    return types.int64(array, end, mask, items), codegen


@intrinsic
def _float_of(typing: Any, pattern: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(pattern), codegen


@intrinsic
def _set(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, sig.args[0], args[0])
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@inner
def _runs(listed):
    return ((listed & 1023) + (RUN - 1)) >> 4


@inner
def snap(WANTED, FOUND, at, V, ROOT, place, scale, LISTS, NEAR, NOTES, GROUPS, DIM, BITS):
    """In NOTES: the scale; for each group the code last wanted, the one found, until when it holds; the queue."""
    st(NOTES, 0, _to_bits(scale))
    off_grid = _lane_numbers(NOTES) & 0
    queue = types.int64((1 + 3 * GROUPS) * WIDTH)
    end = queue
    for g in range(GROUPS):
        wanted = ld(WANTED, at + g)
        row = 1 + 3 * g
        off = take(LISTS, wanted) != 0
        known = (ld(NOTES, row) == wanted) & (scale >= _from_bits(ld(NOTES, row + 2)))
        off_grid = off_grid | where(off, 1 << g, 0)
        st(NOTES, row, wanted)
        end = _queue(NOTES, end, off & ~known, _lane_numbers(NOTES) + g * WIDTH)
    for k in range(queue, end):
        item = types.int64(cst(NOTES, k))
        lane = item & (WIDTH - 1)
        g = item >> _LANE_BITS
        step = _float_of(cst(NOTES, lane))
        note = (2 + 3 * g) * WIDTH + lane
        listed = types.int64(cst(LISTS, cst(WANTED, at * WIDTH + item)))
        group = (place + g * DIM) * WIDTH + lane
        if DIM == 4:
            _search4(V, ROOT, group, step, NEAR, (listed >> 10) * RUN, _runs(listed), NOTES, note)
        else:
            _search8(V, ROOT, group, step, NEAR, (listed >> 10) * RUN, _runs(listed), NOTES, note)
    for g in range(GROUPS):
        off = (off_grid & (1 << g)) != 0
        st(FOUND, at + g, where(off, ld(NOTES, 2 + 3 * g), ld(WANTED, at + g)))
    return off_grid


@inner
def forget(NOTES, GROUPS):
    for g in range(GROUPS):
        st(NOTES, 1 + 3 * g, _no_code(NOTES))


@inner
def nearest_shifted(u, V, WEIGHT, place, scale, low, LISTS, NEAR, NOTES):
    """In NOTES: the scale, the codes wanted and then found, the low values, the queue."""
    st(NOTES, 0, _to_bits(scale))
    st(NOTES, 1, u)
    st(NOTES, 2, _to_bits(low))
    queue = types.int64(3 * WIDTH)
    for k in range(queue, _queue(NOTES, queue, take(LISTS, u) != 0, _lane_numbers(NOTES))):
        lane = types.int64(cst(NOTES, k))
        step = _float_of(cst(NOTES, lane))
        lowest = _float_of(cst(NOTES, 2 * WIDTH + lane))
        listed = types.int64(cst(LISTS, cst(NOTES, WIDTH + lane)))
        group = place * WIDTH + lane
        start = (listed >> 10) * RUN
        code = _search_shifted(V, WEIGHT, group, step, lowest, NEAR, start, _runs(listed))
        _set(NOTES, WIDTH + lane, code)
    return ld(NOTES, 1)


WORDS = {
    **cpu_words.WORDS,
    "pick": cpu_tables.pick,
    "snap": snap,
    "forget": forget,
    "nearest_shifted": nearest_shifted,
}
