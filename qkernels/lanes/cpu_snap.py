"""The CPU's words for the nearest entries of a codebook: searches one by one, and as few as possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes import cpu_tables, cpu_words
from quantmill.qkernels.lanes.cpu_search import RUN, Group, Nearest, stays_until
from quantmill.qkernels.lanes.cpu_values import as_index
from quantmill.qkernels.lanes.cpu_words import number_at
from quantmill.qkernels.lanes.program import program, word
from quantmill.qkernels.lanes.simd import F32, I32, I64, LaneBuilder, call, part

cst, ld, st, take, where = (cpu_words.WORDS[name] for name in ("cst", "ld", "st", "take", "where"))
_to_bits, _from_bits = cpu_words.WORDS["bits"], cpu_words.WORDS["from_bits"]


def _search(dim: int, bits: int) -> Any:
    """search(x, w, group, scale, near, start, runs, notes, note): note the nearest code, and how long it stays so."""

    def build(
        b: LaneBuilder,
        x: ir.Value,
        w: ir.Value,
        group: Any,
        scale: ir.Value,
        near: ir.Value,
        start: ir.Value,
        runs: ir.Value,
        notes: ir.Value,
        note: Any,
    ) -> None:
        found = Group(b, number_at(b, x, group), number_at(b, w, group), scale, (dim, bits), 2.0, F32(1.0))
        list_at = number_at(b, near, start)
        code_at = number_at(b, notes, note)
        until_at = b.gep(code_at, [I32(b.width)])
        with b.if_else(b.icmp_signed("==", runs, I64(1)), likely=True) as branches:
            for branch, count in zip(branches, (None, runs), strict=True):
                with branch:
                    nearest = Nearest(b, found, list_at, count)
                    b.store(nearest.code, code_at)
                    b.store(b.bitcast(stays_until(b, scale, nearest), I32), until_at)

    return word(build)


_search4, _search8 = _search(4, 3), _search(8, 2)


@word
def _search_shifted(
    b: LaneBuilder,
    x: ir.Value,
    w: ir.Value,
    group: Any,
    scale: ir.Value,
    low: ir.Value,
    near: ir.Value,
    start: ir.Value,
    runs: ir.Value,
) -> ir.Value:
    found = Group(b, number_at(b, x, group), number_at(b, w, group), scale, (8, 2), 1.0, low)
    return Nearest(b, found, number_at(b, near, start), runs).code


# How many lanes there are, known while compiling.
_width = word(lambda b: b.width)
_lane_bits = word(lambda b: b.width.bit_length() - 1)
_lane_numbers = word(lambda b: ir.Constant(b.ints, list(range(b.width))))
_no_code = word(lambda b: ir.Constant(b.ints, [-1] * b.width))


@word
def _queue(b: LaneBuilder, array: ir.Value, end: Any, mask: ir.Value, items: ir.Value) -> ir.Value:
    """Append the items of the lanes that `mask` holds; the new end."""
    end = as_index(b, end)
    for first in range(0, b.width, RUN):
        some, given = (part(b, value, first, RUN) for value in (mask, items))
        name = f"llvm.masked.compressstore.v{RUN}i32"
        call(b, name, ir.VoidType(), given, number_at(b, array, end), some)
        count = b.ctpop(b.bitcast(some, ir.IntType(RUN)))
        end = b.add(end, b.zext(count, I64))
    return end


@word
def _float_of(b: LaneBuilder, pattern: ir.Value) -> ir.Value:
    return b.bitcast(b.trunc(pattern, I32), F32)


@word
def _set(b: LaneBuilder, array: ir.Value, index: Any, value: ir.Value) -> None:
    b.store(value, number_at(b, array, index))


@program
def _runs(listed):
    return ((listed & 1023) + (RUN - 1)) >> 4


@program
def snap(WANTED, FOUND, at, V, ROOT, place, scale, LISTS, NEAR, NOTES, GROUPS, DIM, BITS):
    """In NOTES: the scale; for each group the code last wanted, the one found, until when it holds; the queue."""
    st(NOTES, 0, _to_bits(scale))
    off_grid = _lane_numbers() & 0
    queue = (1 + 3 * GROUPS) * _width()
    end = queue
    for g in range(GROUPS):
        wanted = ld(WANTED, at + g)
        row = 1 + 3 * g
        off = take(LISTS, wanted) != 0
        known = (ld(NOTES, row) == wanted) & (scale >= _from_bits(ld(NOTES, row + 2)))
        off_grid = off_grid | where(off, 1 << g, 0)
        st(NOTES, row, wanted)
        end = _queue(NOTES, end, off & ~known, _lane_numbers() + g * _width())
    for k in range(queue, end):
        item = cst(NOTES, k)
        lane = item & (_width() - 1)
        g = item >> _lane_bits()
        step = _float_of(cst(NOTES, lane))
        note = (2 + 3 * g) * _width() + lane
        listed = cst(LISTS, cst(WANTED, at * _width() + item))
        group = (place + g * DIM) * _width() + lane
        if DIM == 4:
            _search4(V, ROOT, group, step, NEAR, (listed >> 10) * RUN, _runs(listed), NOTES, note)
        else:
            _search8(V, ROOT, group, step, NEAR, (listed >> 10) * RUN, _runs(listed), NOTES, note)
    for g in range(GROUPS):
        off = (off_grid & (1 << g)) != 0
        st(FOUND, at + g, where(off, ld(NOTES, 2 + 3 * g), ld(WANTED, at + g)))
    return off_grid


@program
def forget(NOTES, GROUPS):
    for g in range(GROUPS):
        st(NOTES, 1 + 3 * g, _no_code())


@program
def nearest_shifted(u, V, WEIGHT, place, scale, low, LISTS, NEAR, NOTES):
    """In NOTES: the scale, the codes wanted and then found, the low values, the queue."""
    st(NOTES, 0, _to_bits(scale))
    st(NOTES, 1, u)
    st(NOTES, 2, _to_bits(low))
    queue = 3 * _width()
    for k in range(queue, _queue(NOTES, queue, take(LISTS, u) != 0, _lane_numbers())):
        lane = cst(NOTES, k)
        step = _float_of(cst(NOTES, lane))
        lowest = _float_of(cst(NOTES, 2 * _width() + lane))
        listed = cst(LISTS, cst(NOTES, _width() + lane))
        group = place * _width() + lane
        start = (listed >> 10) * RUN
        code = _search_shifted(V, WEIGHT, group, step, lowest, NEAR, start, _runs(listed))
        _set(NOTES, _width() + lane, code)
    return ld(NOTES, 1)


WORDS: Mapping[str, Any] = {
    **cpu_words.WORDS,
    "pick": cpu_tables.pick,
    "snap": snap,
    "forget": forget,
    "nearest_shifted": nearest_shifted,
}
