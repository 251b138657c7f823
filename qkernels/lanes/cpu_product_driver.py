"""Products of whole numbers on the CPU, as LLVM IR: numbers become 16-bit codes by blocks, codes are multiplied.

    i32 enter(source, codes, scales, n_rows, n_cols, apart)      what is multiplied, row by row
    i32 pack(source, codes, scales, n_cols, first, end, apart)   the matrix, turned: its rows become lanes
    i32 multiply(codes, scales, packed, packed_scales, out, n_rows, n_blocks, n_packed, n_out, apart)

apart: numbers from row to row.

A block of BLOCK numbers of a row is codes · scale, its largest code TOP or TOP_OF_MATRIX, so that the sum of BLOCK
products of two codes is exact in 32 bits; sums of blocks are added in float32, one after the other. What a row gives
does not depend on the rows beside it. Activations have outliers, so theirs are the longer codes. One instruction adds
two products to each of sixteen sums (AVX512-VNNI's vpdpwssd), twice as many as one of float32.
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_product_shape import (
    BLOCK,
    LANES,
    ROWS,
    TOP,
    TOP_OF_MATRIX,
    VECTORS,
    WIDE,
)
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I16,
    I32,
    I64,
    ROUNDER,
    LaneBuilder,
    call,
    function,
    interleave,
    load_run,
    local,
    loop,
    repeated,
    splat,
    store_run,
    store_some,
)

_PAIRS = BLOCK // 2
_RUNS = BLOCK // LANES
_FLOATS, _INTS, _WORDS = (ir.VectorType(F32, 16), ir.VectorType(I32, 16), ir.VectorType(I16, 32))
_LEAST = 1e-30  # blocks whose largest number is smaller are zero
_LOW = 0xFFFF
_SIZE = 0x7FFFFFFF  # all bits of a float but its sign


def size(b: ir.IRBuilder, run: ir.Value) -> ir.Value:
    """The bits of |x|, which order as the numbers do, infinities and NaN behind all others."""
    ints = ir.VectorType(I32, run.type.count)
    return b.and_(b.bitcast(run, ints), repeated(_SIZE, ints))


def larger(b: ir.IRBuilder, one: ir.Value, other: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed(">", one, other), one, other)


def scales_of(b: ir.IRBuilder, largest: ir.Value, largest_code: int) -> tuple[ir.Value, ir.Value]:
    """Of the largest sizes: the scales, and what numbers are multiplied with to become codes; both 0 of tiny blocks."""
    zero, one = ir.Constant(largest.type, None), ir.Constant(largest.type, 1.0)
    if isinstance(largest.type, ir.VectorType):
        zero, one = repeated(0.0, largest.type), repeated(1.0, largest.type)
        top, least = repeated(float(largest_code), largest.type), repeated(_LEAST, largest.type)
    else:
        top, least = F32(float(largest_code)), F32(_LEAST)
    tiny = b.fcmp_ordered("<", largest, least)
    scale = b.select(tiny, zero, b.fdiv(largest, top))
    return scale, b.select(tiny, zero, b.fdiv(top, b.select(tiny, one, largest)))


def rounded(b: ir.IRBuilder, run: ir.Value, factor: ir.Value) -> ir.Value:
    """Numbers → floats in whose bits the codes are the low 16."""
    return b.fadd(b.fmul(run, factor), repeated(ROUNDER, run.type))


def _codes(b: ir.IRBuilder, low: ir.Value, high: ir.Value, factor: ir.Value) -> ir.Value:
    """Two runs of 16 numbers → their 32 codes."""
    words = [b.bitcast(rounded(b, run, factor), _WORDS) for run in (low, high)]
    return b.shuffle_vector(*words, ir.Constant(ir.VectorType(I32, 32), list(range(0, 64, 2))))


def enter(module: ir.Module, processor: Processor) -> ir.Function:
    """source f32 [n_rows, n_cols] → codes i16 [n_rows, n_cols], scales f32 [n_rows, n_cols / BLOCK]."""
    b, given = function(module, "enter", processor, (F32, I16, F32), 3)
    source, codes, scales, n_rows, n_cols, apart = given
    n_blocks = b.sdiv(n_cols, I64(BLOCK))
    with loop(b, I64(0), n_rows) as row, loop(b, I64(0), n_blocks) as in_row:
        block = b.add(b.mul(row, n_blocks), in_row)
        first, place = b.mul(block, I64(BLOCK)), b.add(b.mul(row, apart), b.mul(in_row, I64(BLOCK)))
        runs = [load_run(b, source, b.add(place, I64(LANES * i)), _FLOATS, 4) for i in range(_RUNS)]
        largest = size(b, runs[0])
        for run in runs[1:]:
            largest = larger(b, largest, size(b, run))
        bits = call(b, "llvm.vector.reduce.smax.v16i32", I32, largest)
        scale, factor = scales_of(b, b.bitcast(bits, F32), TOP)
        b.store(scale, b.gep(scales, [block]))
        factors = splat(b, factor, LANES)
        for i in range(0, _RUNS, 2):
            store_run(b, _codes(b, runs[i], runs[i + 1], factors), codes, b.add(first, I64(LANES * i)), 2)
    b.ret(I32(0))
    return b.function


def pack(module: ir.Module, processor: Processor) -> ir.Function:
    """Rows first … end - 1, multiples of LANES, of a matrix, which begin at source f32 [end - first, n_cols] → their
    places in codes i16 [n / WIDE, n_cols / 2, WIDE, 2] and scales f32 [n / WIDE, n_cols / BLOCK, WIDE]."""
    b, given = function(module, "pack", processor, (F32, I16, F32), 4)
    source, codes, scales, n_cols, first, end, apart = given
    n_blocks = b.sdiv(n_cols, I64(BLOCK))
    pairs = b.bitcast(codes, I32.as_pointer())
    with loop(b, first, end, I64(LANES)) as begin:
        tile, part = b.sdiv(begin, I64(WIDE)), b.srem(begin, I64(WIDE))
        with loop(b, I64(0), n_blocks) as block:
            column = b.mul(block, I64(BLOCK))
            above = b.sub(begin, first)
            starts = [b.add(b.mul(b.add(above, I64(row)), apart), column) for row in range(LANES)]

            def run(row: int, i: int, starts: list[ir.Value] = starts) -> ir.Value:
                return load_run(b, source, b.add(starts[row], I64(LANES * i)), _FLOATS, 4)

            sizes = []
            for row in range(LANES):
                largest = size(b, run(row, 0))
                for i in range(1, _RUNS):
                    largest = larger(b, largest, size(b, run(row, i)))
                sizes.append(largest)
            turned = interleave(b, sizes)
            while len(turned) > 1:
                turned = [larger(b, one, other) for one, other in zip(turned[::2], turned[1::2], strict=True)]
            scale, factor = scales_of(b, b.bitcast(turned[0], _FLOATS), TOP_OF_MATRIX)
            place = b.add(b.mul(b.add(b.mul(tile, n_blocks), block), I64(WIDE)), part)
            store_run(b, scale, scales, place, 4)
            factors = [_one(b, factor, row) for row in range(LANES)]
            for i in range(0, _RUNS, 2):
                words = [
                    b.bitcast(_codes(b, run(row, i), run(row, i + 1), factors[row]), _INTS)
                    for row in range(LANES)
                ]
                for k, lanes in enumerate(interleave(b, words)):
                    pair = b.add(
                        b.mul(b.add(b.mul(tile, n_blocks), block), I64(_PAIRS)), I64(i // 2 * LANES + k)
                    )
                    store_run(b, lanes, pairs, b.add(b.mul(pair, I64(WIDE)), part), 4)
    b.ret(I32(0))
    return b.function


def _one(b: ir.IRBuilder, lanes: ir.Value, which: int) -> ir.Value:
    """One lane in all places."""
    return b.shuffle_vector(
        lanes, ir.Constant(lanes.type, ir.Undefined), repeated(which, ir.VectorType(I32, LANES))
    )


def pack_lanes(
    b: LaneBuilder, runs: list[ir.Value], codes: ir.Value, scales: ir.Value, block: ir.Value, first: ir.Value
) -> None:
    """A block of columns, runs of one column of all lanes, which are rows first, first + 1 … of WIDE."""
    pairs = b.bitcast(codes, I32.as_pointer())
    largest = size(b, runs[0])
    for run in runs[1:]:
        largest = larger(b, largest, size(b, run))
    scale, factor = scales_of(b, b.bitcast(largest, b.floats), TOP_OF_MATRIX)
    store_run(b, scale, scales, b.add(b.mul(block, I64(WIDE)), first), 4)
    for k in range(_PAIRS):
        low, high = (b.bitcast(rounded(b, runs[2 * k + i], factor), b.ints) for i in range(2))
        pair = b.or_(b.and_(low, repeated(_LOW, b.ints)), b.shl(high, repeated(16, b.ints)))
        place = b.add(b.mul(block, I64(_PAIRS)), I64(k))
        store_run(b, pair, pairs, b.add(b.mul(place, I64(WIDE)), first), 4)


def multiply(module: ir.Module, processor: Processor) -> ir.Function:
    """codes, scales of n_rows rows (a multiple of ROWS is readable), packed matrix of n_out rows → out f32 [n_rows,
    stride], n_out of each row. n_blocks: of a row."""
    b, given = function(module, "multiply", processor, (I16, F32, I16, F32, F32), 5)
    codes, scales, packed, packed_scales, out, n_rows, n_blocks, n_packed, n_out, apart = given
    left, right = (b.bitcast(array, I32.as_pointer()) for array in (codes, packed))
    sums = [[local(b, _INTS) for _ in range(VECTORS)] for _ in range(ROWS)]
    totals = [[local(b, _FLOATS) for _ in range(VECTORS)] for _ in range(ROWS)]
    n_tiles = b.sdiv(b.add(n_out, I64(WIDE - 1)), I64(WIDE))
    n_pairs = b.mul(n_blocks, I64(_PAIRS))
    with loop(b, I64(0), n_tiles) as tile:
        column = b.mul(tile, I64(WIDE))
        before = b.mul(tile, b.mul(n_packed, I64(WIDE)))
        matrix = b.gep(right, [b.mul(before, I64(_PAIRS))])
        matrix_scales = b.gep(packed_scales, [before])
        with loop(b, I64(0), n_rows, I64(ROWS)) as row:
            rows = [b.add(row, I64(m)) for m in range(ROWS)]
            inputs = [b.gep(left, [b.mul(one, n_pairs)]) for one in rows]
            input_scales = [b.gep(scales, [b.mul(one, n_blocks)]) for one in rows]
            _each(b, totals, repeated(0.0, _FLOATS))
            with loop(b, I64(0), n_blocks) as block:
                _each(b, sums, repeated(0, _INTS))
                first = b.mul(block, I64(_PAIRS))
                with loop(b, first, b.add(first, I64(_PAIRS))) as pair:
                    _add_products(b, sums, inputs, matrix, pair)
                _add_block(b, sums, totals, input_scales, matrix_scales, block)
            _store(b, totals, out, rows, n_rows, column, n_out, apart)
    b.ret(I32(0))
    return b.function


def _each(b: ir.IRBuilder, places: list[list[ir.Value]], value: ir.Value) -> None:
    for place in (one for line in places for one in line):
        b.store(value, place)


def _add_products(
    b: ir.IRBuilder, sums: list[list[ir.Value]], inputs: list[ir.Value], matrix: ir.Value, pair: ir.Value
) -> None:
    place = b.mul(pair, I64(WIDE))
    lanes = [load_run(b, matrix, b.add(place, I64(LANES * v)), _INTS, 4) for v in range(VECTORS)]
    for line, pointer in zip(sums, inputs, strict=True):
        both = splat(b, b.load(b.gep(pointer, [pair])), LANES)
        for place, run in zip(line, lanes, strict=True):
            b.store(call(b, "llvm.x86.avx512.vpdpwssd.512", _INTS, b.load(place), both, run), place)


def _add_block(
    b: ir.IRBuilder,
    sums: list[list[ir.Value]],
    totals: list[list[ir.Value]],
    input_scales: list[ir.Value],
    matrix_scales: ir.Value,
    block: ir.Value,
) -> None:
    place = b.mul(block, I64(WIDE))
    scales = [load_run(b, matrix_scales, b.add(place, I64(LANES * v)), _FLOATS, 4) for v in range(VECTORS)]
    for line, floats, pointer in zip(sums, totals, input_scales, strict=True):
        scale = splat(b, b.load(b.gep(pointer, [block])), LANES)
        for one, total, matrix_scale in zip(line, floats, scales, strict=True):
            value = b.sitofp(b.load(one), _FLOATS)
            b.store(
                call(b, "llvm.fma.v16f32", _FLOATS, value, b.fmul(scale, matrix_scale), b.load(total)), total
            )


def _store(
    b: ir.IRBuilder,
    totals: list[list[ir.Value]],
    out: ir.Value,
    rows: list[ir.Value],
    n_rows: ir.Value,
    column: ir.Value,
    n_out: ir.Value,
    apart: ir.Value,
) -> None:
    left = b.trunc(b.sub(n_out, column), I32)
    for row, line in zip(rows, totals, strict=True):
        with b.if_then(b.icmp_signed("<", row, n_rows)):
            for v, place in enumerate(line):
                start = b.add(b.mul(row, apart), b.add(column, I64(LANES * v)))
                store_some(b, b.load(place), out, start, LANES * v, left)
