"""Products with a stored matrix, as LLVM IR: WIDE of its rows are packed and multiplied before the next are.

    i32 multiply_0(codes, scales, source, packed, packed_scales, out, own, fill, n_rows, n_cols, n, n_blocks, row_bytes,
                   apart)
    i32 multiply_1(…, own, table, fill, …)

source: n rows of row_bytes, of n_blocks blocks each. fill: the address of the function that packs as many rows as there
are lanes (cpu_filling_driver's, or a `fill_…` of these), of which n is a multiple; it needs `own` and so many tables.
packed and packed_scales of WIDE rows are memory to work in; the rest is as in cpu_product_driver, or
cpu_tile_driver.

    i32 fill_F32(source, codes, scales, n_cols, row_bytes, first, own)     and of F16 and BF16: the plain types

own: f32 [lanes, n_cols]. Their rows lie one after the other.
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_product_kinds import MAKERS
from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, DECODER_TABLES, LANES, WIDE, WIDENED
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LaneBuilder,
    from_brain,
    function,
    load_run,
    loop,
    store_run,
)

_BYTES, _FLOATS, _INTS = I8.as_pointer(), ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_HALVES, _WORDS = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(I16, LANES)


def text_of(kind: str, processor: Processor) -> str:
    """The module of all of them, for one kind of products."""
    module = ir.Module("quantmill")
    packed, multiplied = (make(module, processor) for make in (MAKERS[kind].pack, MAKERS[kind].multiply))
    for n_tables in DECODER_TABLES:
        _multiply(module, processor, multiplied, n_tables)
    for type in WIDENED:
        _fill(module, processor, packed, type)
    return str(module)


def _filler(n_tables: int) -> ir.FunctionType:
    places = [I16.as_pointer(), F32.as_pointer()]
    return ir.FunctionType(I32, [_BYTES, *places, I64, I64, I64, _BYTES, *[_BYTES] * n_tables])


def _multiply(module: ir.Module, processor: Processor, multiplied: ir.Function, n_tables: int) -> None:
    kinds = (I16, F32, I8, I16, F32, F32, I8, *[I8] * n_tables)
    b, given = function(module, f"multiply_{n_tables}", processor, kinds, 7)
    codes, scales, source, places, place_scales, out, own = given[:7]
    tables, left = given[7 : 7 + n_tables], given[7 + n_tables :]
    address, n_rows, n_cols, n, n_blocks, row_bytes, apart = left
    fill = b.inttoptr(address, _filler(n_tables).as_pointer())
    in_row = b.sdiv(n_cols, I64(BLOCK))
    with loop(b, I64(0), n, I64(WIDE)) as first:
        behind = b.sub(n, first)
        wide = b.select(b.icmp_signed("<", behind, I64(WIDE)), behind, I64(WIDE))
        with loop(b, I64(0), wide, I64(processor.width)) as row:
            stored = b.gep(source, [b.mul(b.add(first, row), row_bytes)])
            b.call(fill, [stored, places, place_scales, n_blocks, row_bytes, row, own, *tables])
        into = b.gep(out, [first])
        b.call(multiplied, [codes, scales, places, place_scales, into, n_rows, in_row, in_row, wide, apart])
    b.ret(I32(0))


def _fill(module: ir.Module, processor: Processor, packed: ir.Function, type: str) -> None:
    fill = ir.Function(module, _filler(0), f"fill_{type}")
    b = LaneBuilder(fill.append_basic_block("entry"), processor)
    source, codes, scales, n_cols, _, first, own = fill.args
    numbers, n_rows = b.bitcast(own, F32.as_pointer()), I64(processor.width)
    stored = b.bitcast(source, {"F32": F32, "F16": ir.HalfType(), "BF16": I16}[type].as_pointer())
    with loop(b, I64(0), b.mul(n_rows, n_cols), I64(LANES)) as place:
        if type == "F32":
            run = load_run(b, stored, place, _FLOATS, 1)
        elif type == "F16":
            run = b.fpext(load_run(b, stored, place, _HALVES, 1), _FLOATS)
        else:
            run = from_brain(b, b.zext(load_run(b, stored, place, _WORDS, 1), _INTS))
        store_run(b, run, numbers, place, 4)
    b.call(packed, [numbers, codes, scales, n_cols, first, b.add(first, n_rows), n_cols])
    b.ret(I32(0))
