"""What runs on the CPU to decode one type: a function over tiles of as many blocks as there are lanes, as LLVM IR.

    i32 drive(source, target, n_blocks, begin, end, own, tables…)

source the blocks, target f32, f16 or bf16 [n_blocks, block]; tiles begin … end-1 of blocks in a row; own: memory
as its Layout says. A tile's bytes are loaded transposed (`[byte][lane]`); each lane number's part of the numbers is
stored, turned back, before the next is computed, so that they stay in the nearest cache. The last tile ends with the
last block and does again what the tile before it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_compiler import Unit
from quantmill.qkernels.lanes.cpu_layout import Layout
from quantmill.qkernels.lanes.cpu_snap import WORDS
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.loader import load
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.program import Program
from quantmill.qkernels.lanes.simd import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LaneBuilder,
    first_of,
    interleave,
    joined,
    load_run,
    loop,
    store_run,
    to_brain,
    to_half,
    zipped,
)
from quantmill.qkernels.types import QuantType

# Elements of a side of the squares that are transposed.
_SIDE = 16
_FLOAT_RUN, _WORD_RUN, _BYTE_RUN = (ir.VectorType(kind, _SIDE) for kind in (F32, I16, I8))
_TARGETS = {"F32": F32, "F16": I16, "BF16": I16}


def text_of(
    type: QuantType,
    decoder: Decoder,
    target: str,
    layout: Layout,
    tables: Sequence[str],
    processor: Processor,
) -> str:
    """The function of a decoder that writes numbers of the type `target`. `tables`: their kinds, "f32" or "i32"."""
    data, number = I8.as_pointer(), I64
    kinds = [{"f32": F32, "i32": I32}[kind].as_pointer() for kind in tables]
    numbers = _TARGETS[target].as_pointer()
    signature = ir.FunctionType(I32, [data, numbers, number, number, number, data, *kinds])
    function = ir.Function(ir.Module("quantmill"), signature, "drive")
    b = LaneBuilder(function.append_basic_block("entry"), processor)
    source, result, n_blocks, begin, end, own, *given = function.args
    arrays = arrays_of(b, layout, own)
    decode = decoding(b, decoder, arrays, given)
    part = type.block // decoder.lanes
    with loop(b, begin, end) as tile:
        first = first_of(b, tile, n_blocks)
        start = b.mul(first, I64(type.bytes))
        load_blocks(b, source, start, type.bytes, I64(type.bytes), arrays["blocks"])
        with loop(b, I64(0), I64(decoder.lanes)) as j:
            decode(j, arrays["y"])
            place = b.add(b.mul(first, I64(type.block)), b.mul(j, I64(part)))
            _store_numbers(b, arrays["y"], part, result, place, type.block, target)
    b.ret(I32(0))
    return str(b.module)


def arrays_of(b: LaneBuilder, layout: Layout, own: ir.Value) -> dict[str, ir.Value]:
    """The arrays of a layout in the memory of the thread."""
    return {
        name: b.bitcast(b.gep(own, [I64(offset)]), b.lanes(kind).as_pointer())
        for name, (offset, kind) in layout.places.items()
    }


def decoding(
    b: LaneBuilder, decoder: Decoder, arrays: Mapping[str, ir.Value], tables: Sequence[ir.Value]
) -> Callable[[ir.Value, ir.Value], None]:
    """What builds a call: part j of the numbers of arrays["blocks"], [byte][lane], into y [number][lane]."""
    known = {**arrays, **dict(zip(decoder.tables, tables, strict=True))}
    operands = [known[operand] if isinstance(operand, str) else operand for operand in decoder.operands]
    unit = Unit(b.module)
    program = load(decoder.module, WORDS, Program)[decoder.function]
    return lambda j, y: unit.call(b, program, [j, arrays["blocks"], y, *operands])


def load_blocks(
    b: LaneBuilder, source: ir.Value, start: ir.Value, n: int, apart: ir.Value, blocks: ir.Value
) -> None:
    """A block of n ≥ 16 bytes for each lane, `apart` bytes from one to the next, becomes [byte][lane]; the last 16
    bytes overlap those before."""
    assert n >= _SIDE
    flat = b.bitcast(blocks, I8.as_pointer())

    def square(i: ir.Value) -> None:
        rows = []
        for k in range(_SIDE):
            places = [
                b.add(b.add(start, b.mul(apart, I64(lane + k))), i) for lane in range(0, b.width, _SIDE)
            ]
            rows.append(joined(b, [load_run(b, source, place, _BYTE_RUN, 1) for place in places]))
        for k, run in enumerate(zipped(b, rows)):
            store_run(b, run, flat, b.mul(b.add(i, I64(k)), I64(b.width)), b.width)

    with loop(b, I64(0), I64(n - _SIDE + 1), I64(_SIDE)) as i:
        square(i)
    if n % _SIDE:
        square(I64(n - _SIDE))


def _store_numbers(
    b: LaneBuilder, y: ir.Value, n: int, result: ir.Value, start: ir.Value, apart: int, target: str
) -> None:
    """[n][lane] becomes n numbers of each lane's block, `apart` numbers from block to block."""
    flat = b.bitcast(y, F32.as_pointer())
    with loop(b, I64(0), I64(n), I64(_SIDE)) as i:
        for lane in range(0, b.width, _SIDE):
            places = [b.add(b.mul(b.add(i, I64(k)), I64(b.width)), I64(lane)) for k in range(_SIDE)]
            runs = interleave(b, [load_run(b, flat, place, _FLOAT_RUN, 4 * _SIDE) for place in places])
            for k, run in enumerate(runs):
                place = b.add(b.add(start, I64(apart * (lane + k))), i)
                store_run(b, _narrowed(b, run, target), result, place, 4 if target == "F32" else 2)


def _narrowed(b: ir.IRBuilder, run: ir.Value, target: str) -> ir.Value:
    if target == "F32":
        return run
    return b.trunc((to_half if target == "F16" else to_brain)(b, run), _WORD_RUN)
