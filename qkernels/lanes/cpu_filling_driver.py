"""What packs stored rows of one type for products, as LLVM IR: they are decoded where their codes are made.

    i32 drive(source, codes, scales, n_blocks, row_bytes, first, own, tables…)

source: a row for each lane, row_bytes from one to the next, n_blocks blocks in each → rows first, first + 1 … of WIDE
in codes and scales as pack of cpu_product_driver, or of cpu_tile_driver, lays them out, to the bit. own: memory as its
Layout says. Lanes are rows, as they are in what is packed, so that nothing is turned round but the bytes of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_decode_driver import arrays_of, decoding, load_blocks
from quantmill.qkernels.lanes.cpu_layout import Layout
from quantmill.qkernels.lanes.cpu_product_kinds import MAKERS
from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, numbers_at_once
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import F32, I8, I16, I32, I64, LaneBuilder, loop
from quantmill.qkernels.types import QuantType


def text_of(
    type: QuantType, decoder: Decoder, layout: Layout, tables: Sequence[str], kind: str, processor: Processor
) -> str:
    """The function for one type and kind of products. `tables`: their kinds, "f32" or "i32"."""
    kinds = [{"f32": F32, "i32": I32}[table].as_pointer() for table in tables]
    arrays = [number.as_pointer() for number in (I8, I16, F32)]
    signature = ir.FunctionType(I32, [*arrays, I64, I64, I64, I8.as_pointer(), *kinds])
    function = ir.Function(ir.Module("quantmill"), signature, "drive")
    b = LaneBuilder(function.append_basic_block("entry"), processor)
    source, codes, scales, n_blocks, row_bytes, first, own, *given = function.args
    known = arrays_of(b, layout, own)
    decode = decoding(b, decoder, known, given)
    part, at_once = type.block // decoder.lanes, numbers_at_once(type.block, decoder.lanes)
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
                runs = [b.load(b.gep(numbers, [I64(i)])) for i in range(BLOCK)]
                number = b.sdiv(b.add(before, column), I64(BLOCK))
                MAKERS[kind].pack_lanes(b, runs, codes, scales, number, first)
    b.ret(I32(0))
    return str(b.module)
