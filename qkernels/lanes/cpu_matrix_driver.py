"""Products with a stored matrix, as LLVM IR: WIDE of its rows are decoded, packed and multiplied before the next are.

    i32 multiply_0(codes, scales, source, numbers, packed, packed_scales, out, own, decode, n_rows, n_cols, n,
                   together, row_bytes, n_blocks, n_tiles, apart)
    i32 multiply_1(…, own, table, decode, …)

source: n rows of row_bytes. decode: the address of the function that reads them (cpu_decode_driver's, or a `widen_…` of
these), which needs `own` and so many tables. It is given `together` rows at a time, LANES or WIDE, of which n is a
multiple; their n_blocks blocks are n_tiles tiles. numbers f32 [together, n_cols], packed and packed_scales of WIDE rows
are memory to work in; the rest is as in cpu_product_driver.

    i32 widen_F32(source, target, n_blocks, begin, end, own)     and of F16 and BF16: the plain types as decoders
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_product_driver import multiply, pack
from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, DECODER_TABLES, LANES, WIDE, WIDENED
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LaneBuilder,
    function,
    load_run,
    loop,
    repeated,
    store_run,
)

_BYTES, _FLOATS, _INTS = I8.as_pointer(), ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_HALVES, _WORDS = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(I16, LANES)


def text_of(processor: Processor) -> str:
    """The module of all of them."""
    module = ir.Module("quantmill")
    packed, multiplied = (make(module, processor) for make in (pack, multiply))
    for n_tables in DECODER_TABLES:
        _multiply(module, processor, packed, multiplied, n_tables)
    for type in WIDENED:
        _widen(module, processor, type)
    return str(module)


def _decoder(n_tables: int) -> ir.FunctionType:
    return ir.FunctionType(I32, [_BYTES, F32.as_pointer(), I64, I64, I64, _BYTES, *[_BYTES] * n_tables])


def _multiply(
    module: ir.Module, processor: Processor, packed: ir.Function, multiplied: ir.Function, n_tables: int
) -> None:
    kinds = (I16, F32, I8, F32, I16, F32, F32, I8, *[I8] * n_tables)
    b, given = function(module, f"multiply_{n_tables}", processor, kinds, 9)
    codes, scales, source, numbers, places, place_scales, out, own = given[:8]
    tables, left = given[8 : 8 + n_tables], given[8 + n_tables :]
    decode, n_rows, n_cols, n, together, row_bytes, n_blocks, n_tiles, apart = left
    read = b.inttoptr(decode, _decoder(n_tables).as_pointer())
    in_row = b.sdiv(n_cols, I64(BLOCK))
    with loop(b, I64(0), n, I64(WIDE)) as first:
        behind = b.sub(n, first)
        wide = b.select(b.icmp_signed("<", behind, I64(WIDE)), behind, I64(WIDE))
        with loop(b, I64(0), wide, together) as row:
            stored = b.gep(source, [b.mul(b.add(first, row), row_bytes)])
            b.call(read, [stored, numbers, n_blocks, I64(0), n_tiles, own, *tables])
            b.call(packed, [numbers, places, place_scales, n_cols, row, b.add(row, together), n_cols])
        into = b.gep(out, [first])
        b.call(multiplied, [codes, scales, places, place_scales, into, n_rows, in_row, in_row, wide, apart])
    b.ret(I32(0))


def _widen(module: ir.Module, processor: Processor, type: str) -> None:
    """A tile is as many numbers as there are lanes in others; here each is a block."""
    widen = ir.Function(module, _decoder(0), f"widen_{type}")
    b = LaneBuilder(widen.append_basic_block("entry"), processor)
    source, target, _, begin, end, _ = widen.args
    width = I64(processor.width)
    stored = b.bitcast(source, {"F32": F32, "F16": ir.HalfType(), "BF16": I16}[type].as_pointer())
    with loop(b, b.mul(begin, width), b.mul(end, width), I64(LANES)) as place:
        if type == "F32":
            run = load_run(b, stored, place, _FLOATS, 1)
        elif type == "F16":
            run = b.fpext(load_run(b, stored, place, _HALVES, 1), _FLOATS)
        else:
            words = b.zext(load_run(b, stored, place, _WORDS, 1), _INTS)
            run = b.bitcast(b.shl(words, repeated(16, _INTS)), _FLOATS)
        store_run(b, run, target, place, 4)
    b.ret(I32(0))
