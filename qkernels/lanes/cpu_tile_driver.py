"""Products of pairs of bfloat16 on the CPU's matrix tiles (AMX), as LLVM IR.

The same three functions as cpu_product_driver's, with the same arguments; codes are bfloat16, `scales` are not used.

A number is the sum of two bfloat16, the nearest one and the nearest of what is left: 16 bits of it, float32's range.
A product is the sum of three, all but that of the two lesser parts, 2^-18 of it, and sums are float32's all the way:
they stay in a tile. What a row gives does not depend on the rows beside it. A tile takes a BLOCK of 16 rows.

codes i16 [n_rows / 16, n_blocks, 2, 16, BLOCK] of what is multiplied, greater parts first; of the matrix, turned,
i16 [n / WIDE, n_blocks, 2, BLOCK / 2, WIDE, 2].
"""

from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, LANES, TILE_ROWS, WIDE
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LaneBuilder,
    call,
    function,
    interleave,
    load_run,
    local,
    loop,
    repeated,
    store_run,
    store_some,
)

_PAIRS = BLOCK // 2
_HIGH = 0xFFFF0000
_NAN = 0x7FC00000
_FLOATS, _INTS, _WORDS = (ir.VectorType(F32, 16), ir.VectorType(I32, 16), ir.VectorType(I16, 32))
_CODES = LANES * BLOCK  # of a tile
_SUMS, _LEFT, _RIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)  # numbers of tiles
# Which parts are multiplied, one after the other: so that each time only half of them are loaded anew.
_TERMS = ((1, 0), (0, 0), (0, 1))


def _parts(b: ir.IRBuilder, run: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Floats → integers whose high 16 bits are the two bfloat16; infinities and NaN give one that is none."""
    kind, floats = ir.VectorType(I32, run.type.count), run.type
    greater = b.add(b.bitcast(run, kind), repeated(1 << 15, kind))
    left = b.fsub(run, b.bitcast(b.and_(greater, repeated(_HIGH, kind)), floats))
    less = b.add(b.bitcast(left, kind), repeated(1 << 15, kind))
    # of a NaN whose upper bits are all ones the sum would be a zero
    return greater, b.select(b.fcmp_unordered("uno", left, left), repeated(_NAN, kind), less)


def _words(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """The high 16 bits of 32 integers."""
    odd = ir.Constant(ir.VectorType(I32, 32), list(range(1, 64, 2)))
    return b.shuffle_vector(b.bitcast(low, _WORDS), b.bitcast(high, _WORDS), odd)


def _block(b: ir.IRBuilder, source: ir.Value, start: ir.Value) -> list[ir.Value]:
    """BLOCK numbers from `start` on → the words of each part."""
    halves = [_parts(b, load_run(b, source, b.add(start, I64(i)), _FLOATS, 4)) for i in (0, LANES)]
    return [_words(b, low, high) for low, high in zip(*halves, strict=True)]


def enter(module: ir.Module, processor: Processor) -> ir.Function:
    b, given = function(module, "enter", processor, (F32, I16, F32), 3)
    source, codes, _, n_rows, n_cols, apart = given
    n_blocks = b.sdiv(n_cols, I64(BLOCK))
    with loop(b, I64(0), n_rows) as row:
        tile, in_tile = b.sdiv(row, I64(LANES)), b.srem(row, I64(LANES))
        with loop(b, I64(0), n_blocks) as block:
            start = b.add(b.mul(row, apart), b.mul(block, I64(BLOCK)))
            place = b.mul(b.add(b.mul(tile, n_blocks), block), I64(2 * _CODES))
            place = b.add(place, b.mul(in_tile, I64(BLOCK)))
            for part, words in enumerate(_block(b, source, start)):
                store_run(b, words, codes, b.add(place, I64(part * _CODES)), 2)
    b.ret(I32(0))
    return b.function


def pack(module: ir.Module, processor: Processor) -> ir.Function:
    b, given = function(module, "pack", processor, (F32, I16, F32), 4)
    source, codes, _, n_cols, first, end, apart = given
    n_blocks = b.sdiv(n_cols, I64(BLOCK))
    pairs = b.bitcast(codes, I32.as_pointer())
    with loop(b, first, end, I64(LANES)) as begin:
        tile, column = b.sdiv(begin, I64(WIDE)), b.srem(begin, I64(WIDE))
        with loop(b, I64(0), n_blocks) as block:
            above, across = b.sub(begin, first), b.mul(block, I64(BLOCK))
            lines = []
            for row in range(LANES):
                start = b.add(b.mul(b.add(above, I64(row)), apart), across)
                lines.append([b.bitcast(words, _INTS) for words in _block(b, source, start)])
            place = _matrix_place(b, b.add(b.mul(tile, n_blocks), block), column)
            for part, words in enumerate(zip(*lines, strict=True)):
                for k, lanes in enumerate(interleave(b, list(words))):
                    store_run(b, lanes, pairs, b.add(place, I64((part * _PAIRS + k) * WIDE)), 4)
    b.ret(I32(0))
    return b.function


def pack_lanes(
    b: LaneBuilder, runs: list[ir.Value], codes: ir.Value, scales: ir.Value, block: ir.Value, first: ir.Value
) -> None:
    pairs = b.bitcast(codes, I32.as_pointer())
    place = _matrix_place(b, block, first)
    for k in range(_PAIRS):
        even, odd = (_parts(b, run) for run in runs[2 * k : 2 * k + 2])
        for part, (one, other) in enumerate(zip(even, odd, strict=True)):
            pair = b.or_(b.lshr(one, repeated(16, b.ints)), b.and_(other, repeated(_HIGH, b.ints)))
            store_run(b, pair, pairs, b.add(place, I64((part * _PAIRS + k) * WIDE)), 4)


def _matrix_place(b: ir.IRBuilder, block: ir.Value, column: ir.Value) -> ir.Value:
    """Where the pairs of a block of the matrix begin, from its row `column` of WIDE on."""
    return b.add(b.mul(block, I64(2 * _PAIRS * WIDE)), column)


def multiply(module: ir.Module, processor: Processor) -> ir.Function:
    b, given = function(module, "multiply", processor, (I16, F32, I16, F32, F32), 5)
    codes, _, packed, _, out, n_rows, n_blocks, n_packed, n_out, apart = given
    _configure(b)
    room = local(b, ir.ArrayType(F32, TILE_ROWS * TILE_ROWS))
    room.align = 64
    corner = b.bitcast(room, F32.as_pointer())
    with loop(b, I64(0), n_out, I64(WIDE)) as wide, loop(b, I64(0), n_rows, I64(TILE_ROWS)) as row:
        rows = b.gep(codes, [b.mul(b.mul(b.sdiv(row, I64(LANES)), n_blocks), I64(2 * _CODES))])
        end = _least(b, b.add(wide, I64(WIDE)), n_out)
        with loop(b, wide, end, I64(TILE_ROWS)) as column:
            start = _matrix_place(b, b.mul(b.sdiv(column, I64(WIDE)), n_packed), b.srem(column, I64(WIDE)))
            matrix = b.gep(packed, [b.mul(start, I64(2))])
            _each_sum(b, "tilezero")
            with loop(b, I64(0), n_blocks) as block:
                _add_products(b, rows, matrix, block, n_blocks)
            place = b.gep(out, [b.add(b.mul(row, apart), column)])
            inside = b.and_(_fits(b, row, n_rows), _fits(b, column, n_out))
            with b.if_else(inside) as (then, otherwise):
                with then:
                    _each_sum(b, "tilestored64", place, apart)
                with otherwise:
                    _each_sum(b, "tilestored64", corner, I64(TILE_ROWS))
                    _copy(b, corner, place, b.sub(n_rows, row), b.sub(n_out, column), apart)
    call(b, "llvm.x86.tilerelease", ir.VoidType())
    b.ret(I32(0))
    return b.function


def _configure(b: LaneBuilder) -> None:
    """All tiles have 16 rows of 64 bytes."""
    settings = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[LANES] * 8, *[0] * 8])
    kind = ir.VectorType(I8, len(settings))
    place = local(b, kind)
    place.align = 64
    b.store(ir.Constant(kind, list(settings)), place)
    call(b, "llvm.x86.ldtilecfg", ir.VoidType(), b.bitcast(place, I8.as_pointer()))


def _tile(b: LaneBuilder, name: str, *arguments: ir.Value) -> None:
    call(b, f"llvm.x86.{name}", ir.VoidType(), *arguments)


def _add_products(
    b: LaneBuilder, rows: ir.Value, matrix: ir.Value, block: ir.Value, n_blocks: ir.Value
) -> None:
    left = [b.gep(rows, [b.mul(b.add(block, b.mul(n_blocks, I64(i))), I64(2 * _CODES))]) for i in range(2)]
    right = b.gep(matrix, [b.mul(block, I64(4 * _PAIRS * WIDE))])
    before: Sequence[int | None] = (None, None)
    for term in _TERMS:
        for i in range(2):
            if term[0] != before[0]:
                _load(b, _LEFT[i], b.gep(left[i], [I64(term[0] * _CODES)]), 64)
            if term[1] != before[1]:
                place = 2 * (term[1] * _PAIRS * WIDE + i * LANES)
                _load(b, _RIGHT[i], b.gep(right, [I64(place)]), 4 * WIDE)
        before = term
        for i, line in enumerate(_SUMS):
            for j, sums in enumerate(line):
                _tile(b, "tdpbf16ps", I8(sums), I8(_LEFT[i]), I8(_RIGHT[j]))


def _load(b: LaneBuilder, tile: int, place: ir.Value, apart: int) -> None:
    _tile(b, "tileloadd64", I8(tile), b.bitcast(place, I8.as_pointer()), I64(apart))


def _each_sum(
    b: LaneBuilder, name: str, place: ir.Value | None = None, apart: ir.Value | None = None
) -> None:
    """One instruction for all sums, which lie at `place`, so many numbers from row to row."""
    for i, line in enumerate(_SUMS):
        for j, sums in enumerate(line):
            if place is None or apart is None:
                _tile(b, name, I8(sums))
                continue
            start = b.gep(place, [b.add(b.mul(apart, I64(LANES * i)), I64(LANES * j))])
            _tile(b, name, I8(sums), b.bitcast(start, I8.as_pointer()), b.mul(apart, I64(4)))


def _copy(
    b: LaneBuilder, source: ir.Value, out: ir.Value, n_rows: ir.Value, n_out: ir.Value, apart: ir.Value
) -> None:
    """The first n_rows rows, at most TILE_ROWS, of as many numbers, and of each the first n_out."""
    left = b.trunc(n_out, I32)
    with loop(b, I64(0), _least(b, n_rows, I64(TILE_ROWS))) as row:
        for first in range(0, TILE_ROWS, LANES):
            run = load_run(b, source, b.add(b.mul(row, I64(TILE_ROWS)), I64(first)), _FLOATS, 4)
            store_some(b, run, out, b.add(b.mul(row, apart), I64(first)), first, left)


def _fits(b: LaneBuilder, first: ir.Value, count: ir.Value) -> ir.Value:
    return b.icmp_signed("<=", b.add(first, I64(TILE_ROWS)), count)


def _least(b: LaneBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", one, other), one, other)
