"""The CPU's words for the nearest entries of a codebook: searches one by one, and as few as possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import llvmlite.ir as ir

from quantmill.qkernels.lanes import cpu_tables, cpu_words
from quantmill.qkernels.lanes.cpu_search import RUN, Found, Group, Search, room, stays_until
from quantmill.qkernels.lanes.cpu_values import as_index
from quantmill.qkernels.lanes.cpu_words import number_at
from quantmill.qkernels.lanes.program import program, word
from quantmill.qkernels.lanes.simd import F32, I32, I64, LaneBuilder, call, local, part

cst, ld, st, take, where = (cpu_words.WORDS[name] for name in ("cst", "ld", "st", "take", "where"))
_to_bits, _from_bits = cpu_words.WORDS["bits"], cpu_words.WORDS["from_bits"]


def _search(dim: int, bits: int) -> Any:
    """search(x, w, item, group, scale, near, start, runs, notes, note, kept, left, n): note the nearest code.

    How long it stays the nearest is noted at once for a list of several runs. For one run, which most have, that is
    left for later, as number n of `left`: an item, and where in its list the nearest is; its distances and norms are
    in `kept`. Two short loops overlap more of their steps than a long one. The result is how many are left.
    """

    def build(
        b: LaneBuilder,
        x: ir.Value,
        w: ir.Value,
        item: ir.Value,
        group: Any,
        scale: ir.Value,
        near: ir.Value,
        start: ir.Value,
        runs: ir.Value,
        notes: ir.Value,
        note: Any,
        kept: ir.Value,
        left: ir.Value,
        n: ir.Value,
    ) -> ir.Value:
        terms = Group(b, number_at(b, x, group), number_at(b, w, group), scale, (dim, bits), 2.0, F32(1.0))
        search = Search(b, terms, number_at(b, near, start))
        code_at = number_at(b, notes, note)
        single = b.icmp_signed("==", runs, I64(1))
        with b.if_else(single, likely=True) as (one_run, several):
            with one_run:
                found = search.of_one_run(_kept_at(b, kept, n))
                b.store(found.code, code_at)
                place = b.gep(left, [b.mul(n, I64(2))])
                b.store(b.trunc(item, I32), place)
                b.store(found.first, b.gep(place, [I64(1)]))
            with several:
                found = search.of_runs(runs)
                b.store(found.code, code_at)
                b.store(b.bitcast(stays_until(b, scale, found), I32), b.gep(code_at, [I32(b.width)]))
        return b.add(n, b.zext(single, I64))

    return word(build)


_search4, _search8 = _search(4, 3), _search(8, 2)


def _kept_at(b: LaneBuilder, kept: ir.Value, n: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Where the distances and norms of number n are."""
    place = b.gep(kept, [b.mul(n, I64(2))])
    return place, b.gep(place, [I64(1)])


@word
def _note_how_long(
    b: LaneBuilder,
    scale: ir.Value,
    near: ir.Value,
    start: ir.Value,
    notes: ir.Value,
    note: Any,
    kept: ir.Value,
    left: ir.Value,
    n: ir.Value,
) -> None:
    """What `_search` left."""
    first = b.load(b.gep(left, [b.add(b.mul(n, I64(2)), I64(1))]))
    found = Found(b, number_at(b, near, start), None, _kept_at(b, kept, n), first)
    until_at = b.gep(number_at(b, notes, note), [I32(b.width)])
    b.store(b.bitcast(stays_until(b, scale, found), I32), until_at)


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
    terms = Group(b, number_at(b, x, group), number_at(b, w, group), scale, (8, 2), 1.0, low)
    return Search(b, terms, number_at(b, near, start)).of_runs(runs).code


# Memory of the function for the measures of so many searches of one run, and for what is to be noted of them.
_kept = word(lambda b, groups: room(b, 2 * groups * b.width))
_left = word(lambda b, groups: b.gep(local(b, ir.ArrayType(I32, 2 * groups * b.width)), [I32(0), I32(0)]))
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
    kept = _kept(GROUPS)
    left = _left(GROUPS)
    n = 0
    for k in range(queue, end):
        item = cst(NOTES, k)
        lane = item & (_width() - 1)
        g = item >> _lane_bits()
        step = _float_of(cst(NOTES, lane))
        note = (2 + 3 * g) * _width() + lane
        listed = cst(LISTS, cst(WANTED, at * _width() + item))
        start = (listed >> 10) * RUN
        group = (place + g * DIM) * _width() + lane
        if DIM == 4:
            n = _search4(V, ROOT, item, group, step, NEAR, start, _runs(listed), NOTES, note, kept, left, n)
        else:
            n = _search8(V, ROOT, item, group, step, NEAR, start, _runs(listed), NOTES, note, kept, left, n)
    for k in range(n):
        item = cst(left, 2 * k)
        lane = item & (_width() - 1)
        step = _float_of(cst(NOTES, lane))
        note = (2 + 3 * (item >> _lane_bits())) * _width() + lane
        start = (cst(LISTS, cst(WANTED, at * _width() + item)) >> 10) * RUN
        _note_how_long(step, NEAR, start, NOTES, note, kept, left, k)
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
