"""What packs stored rows of one type for products, as LLVM IR: they are decoded where their codes are made.

    i32 drive(source, codes, scales, n_blocks, row_bytes, first, own, tables…)

source: a row for each lane, row_bytes from one to the next, n_blocks blocks in each → rows first, first + 1 … of WIDE
in codes and scales as cpu_product_driver's pack lays them out, to the bit. own: memory as its Layout says. Lanes are
rows, as they are in what is packed, so that nothing is turned round but the bytes of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_decode_driver import arrays_of, decoding, load_blocks
from quantmill.qkernels.lanes.cpu_layout import Layout
from quantmill.qkernels.lanes.cpu_product_driver import larger, rounded, scales_of, size
from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, TOP_OF_MATRIX, WIDE, numbers_at_once
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import F32, I8, I16, I32, I64, LaneBuilder, loop, repeated, store_run
from quantmill.qkernels.types import QuantType

_LOW = 0xFFFF


def text_of(
    type: QuantType, decoder: Decoder, layout: Layout, tables: Sequence[str], processor: Processor
) -> str:
    """The function for one type. `tables`: their kinds, "f32" or "i32"."""
    kinds = [{"f32": F32, "i32": I32}[kind].as_pointer() for kind in tables]
    arrays = [kind.as_pointer() for kind in (I8, I16, F32)]
    signature = ir.FunctionType(I32, [*arrays, I64, I64, I64, I8.as_pointer(), *kinds])
    function = ir.Function(ir.Module("quantmill"), signature, "drive")
    b = LaneBuilder(function.append_basic_block("entry"), processor)
    source, codes, scales, n_blocks, row_bytes, first, own, *given = function.args
    known = arrays_of(b, layout, own)
    decode = decoding(b, decoder, known, given)
    part, at_once = type.block // decoder.lanes, numbers_at_once(type.block, decoder.lanes)
    pairs = b.bitcast(codes, I32.as_pointer())
    with loop(b, I64(0), n_blocks) as block:
        start = b.mul(block, I64(type.bytes))
        load_blocks(b, source, start, type.bytes, row_bytes, known["blocks"])
        with loop(b, I64(0), I64(type.block // at_once)) as group:
            for i in range(at_once // part):
                j = b.add(b.mul(group, I64(at_once // part)), I64(i))
                decode(j, b.gep(known["y"], [I64(i * part)]))
            before = b.add(b.mul(block, I64(type.block)), b.mul(group, I64(at_once)))
            with loop(b, I64(0), I64(at_once), I64(BLOCK)) as column:
                numbers = b.gep(known["y"], [column])
                _pack(b, numbers, pairs, scales, b.sdiv(b.add(before, column), I64(BLOCK)), first)
    b.ret(I32(0))
    return str(b.module)


def _pack(
    b: LaneBuilder, numbers: ir.Value, pairs: ir.Value, scales: ir.Value, block: ir.Value, first: ir.Value
) -> None:
    """A block of columns, [column][row] f32."""
    runs = [b.load(b.gep(numbers, [I64(i)])) for i in range(BLOCK)]
    largest = size(b, runs[0])
    for run in runs[1:]:
        largest = larger(b, largest, size(b, run))
    scale, factor = scales_of(b, b.bitcast(largest, b.floats), TOP_OF_MATRIX)
    store_run(b, scale, scales, b.add(b.mul(block, I64(WIDE)), first), 4)
    for k in range(BLOCK // 2):
        low, high = (b.bitcast(rounded(b, runs[2 * k + i], factor), b.ints) for i in range(2))
        pair = b.or_(b.and_(low, repeated(_LOW, b.ints)), b.shl(high, repeated(16, b.ints)))
        place = b.add(b.mul(block, I64(BLOCK // 2)), I64(k))
        store_run(b, pair, pairs, b.add(b.mul(place, I64(WIDE)), first), 4)
