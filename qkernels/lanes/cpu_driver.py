"""What runs on the CPU for one encoder: a function over tiles of as many blocks as there are lanes, as LLVM IR.

    i32 drive(source, columns, sigma, target, n_rows, n_cols, begin, end, own, tables…)

source [n_rows, n_cols] in F32, F16 or BF16, columns f32 [n_cols] the importance, target the blocks; tiles begin …
end-1; own: memory as its Layout says. The result is of the bits in cpu_encoder_shape.

A tile is loaded transposed (`[element][lane]`), taken through the phases and written back block by block. With
importance its lanes are blocks of different rows at the same columns, so that all share the importance of a column;
else they are blocks in a row, which reads memory in its order. Where the mean square of a row counts, a tile is whole
rows: all of them are loaded and summed, behind the Layout in own, before the first of their blocks is searched. Blocks
that are `apart`, a row each, have their own importance, columns f32 [n_rows, n_cols], and sigma f32 [n_rows], the mean
squares of the rows that they come from. The last tile ends with the last block and does again what the tile before it
did: blocks are independent, so the bytes are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import llvmlite.ir as ir

from quantmill.qkernels.checks import scales_not_finite
from quantmill.qkernels.lanes.cpu_compiler import Unit
from quantmill.qkernels.lanes.cpu_encoder_shape import BAD_SCALE, BAD_WEIGHT
from quantmill.qkernels.lanes.cpu_layout import Layout
from quantmill.qkernels.lanes.cpu_snap import WORDS
from quantmill.qkernels.lanes.encoder import Encoder
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
    any_of,
    first_of,
    from_brain,
    from_half,
    interleave,
    load_run,
    local,
    loop,
    part,
    prefetch,
    repeated,
    store_run,
    zipped,
)
from quantmill.qkernels.types import QuantType

# Elements of a side of the squares that are transposed.
_SIDE = 16
_FLOAT_RUN, _INT_RUN = (ir.VectorType(kind, _SIDE) for kind in (F32, I32))
_LARGEST_FINITE = 0x7F7FFFFF
# Weights of a row that are loaded and summed at a time, and how many such runs before that they are asked for.
_RUN, _AHEAD = 32, 8
# Sixteen weights as they are stored.
_HALF_RUN = ir.VectorType(I16, _SIDE)
_STORED = {"F32": _FLOAT_RUN, "F16": _HALF_RUN, "BF16": _HALF_RUN}


def text_of(
    type: QuantType,
    encoder: Encoder,
    source: str,
    layout: Layout,
    tables: Sequence[str],
    processor: Processor,
    apart: bool = False,
) -> str:
    """The function of an encoder for rows of the type `source`. `tables`: the kinds of its tables, "f32" or "i32"."""
    driver = _Driver(source, layout, tables, processor)
    unit = Unit(driver.b.module)
    modules = dict.fromkeys(encoder.module_of(phase) for phase in encoder.phases)
    programs = {module: load(module, WORDS, Program) for module in modules}
    arrays = {**driver.arrays, **dict(zip(encoder.tables, driver.tables, strict=True))}
    b, block, size = driver.b, I64(type.block), I64(type.bytes)
    per_row = b.udiv(driver.n_cols, block)

    def search(first: ir.Value, step: ir.Value) -> None:
        """Blocks first, first + step …, one a lane, of what was loaded."""
        for phase in encoder.phases:
            arguments = [arrays[a] if isinstance(a, str) else a for a in phase.arguments]
            with loop(b, I64(0), I64(phase.lanes)) as j:
                unit.call(b, programs[encoder.module_of(phase)][phase.function], [j, *arguments])
        driver.see_scales(type)
        driver.store_tile(b.mul(first, size), b.mul(step, size), type.bytes)

    with loop(b, driver.begin, driver.end) as tile:
        if encoder.uses_row_sigma and not apart:
            row = first_of(b, tile, driver.n_rows)
            rows = driver.load_rows(row, unit, layout.n_bytes)
            with loop(b, I64(0), per_row) as column:
                start = b.mul(column, block)
                arrays["x"], arrays["importance"] = b.gep(rows, [start]), b.gep(driver.columns, [start])
                search(b.add(b.mul(row, per_row), column), per_row)
        elif encoder.uses_importance and not apart:
            row = first_of(b, b.udiv(tile, per_row), driver.n_rows)
            column = b.urem(tile, per_row)
            arrays["importance"] = b.gep(driver.columns, [b.mul(column, block)])
            first = b.add(b.mul(row, per_row), column)
            driver.load_tile(arrays["x"], b.mul(first, block), driver.n_cols, type.block, block)
            search(first, per_row)
        else:
            first = first_of(b, tile, b.mul(driver.n_rows, per_row))
            if apart:
                driver.load_importance(b.mul(first, block), block, type.block)
            if encoder.uses_row_sigma:
                given = b.bitcast(b.gep(driver.sigma, [first]), b.floats.as_pointer())
                b.store(b.load(given, align=4), arrays["row_sigma"])
            ahead = b.mul(I64(b.width), block)
            driver.load_tile(arrays["x"], b.mul(first, block), block, type.block, ahead)
            search(first, I64(1))
    return driver.finish()


def text_of_row_sigma(source: str, layout: Layout, processor: Processor) -> str:
    """sigma[row] becomes the mean square of the row, summed from left to right as the reference does."""
    driver = _Driver(source, layout, [], processor)
    b, unit = driver.b, Unit(driver.b.module)
    with loop(b, driver.begin, driver.end) as tile:
        row = first_of(b, tile, driver.n_rows)
        driver.load_rows(row, unit, layout.n_bytes)
        place = b.bitcast(b.gep(driver.sigma, [row]), b.floats.as_pointer())
        b.store(b.load(driver.arrays["row_sigma"]), place, align=4)
    return driver.finish()


class _Driver:
    """The function, its arguments, and what every tile goes through."""

    def __init__(self, source: str, layout: Layout, tables: Sequence[str], processor: Processor) -> None:
        module = ir.Module("quantmill")
        self.stored = source
        rows, floats, data = _STORED[source].element.as_pointer(), F32.as_pointer(), I8.as_pointer()
        kinds = [{"f32": F32, "i32": I32}[kind].as_pointer() for kind in tables]
        signature = ir.FunctionType(I32, [rows, floats, floats, data, I64, I64, I64, I64, data, *kinds])
        function = ir.Function(module, signature, "drive")
        self.b = b = LaneBuilder(function.append_basic_block("entry"), processor)
        self.source, self.columns, self.sigma, self.target, *numbers, own = function.args[:9]
        self.n_rows, self.n_cols, self.begin, self.end = numbers
        self.tables = function.args[9:]
        self.own = own
        self.arrays: dict[str, ir.Value] = {
            name: b.bitcast(b.gep(own, [I64(offset)]), b.lanes(kind).as_pointer())
            for name, (offset, kind) in layout.places.items()
        }
        self.largest = local(b, _INT_RUN)
        b.store(repeated(0, _INT_RUN), self.largest)
        self.beyond = local(b, b.truths)
        b.store(repeated(0, b.truths), self.beyond)

    def load_rows(self, row: ir.Value, unit: Unit, place: int) -> ir.Value:
        """Whole rows, one a lane, from `row` on, are loaded to own[place]; row_sigma becomes their mean squares, summed
        from left to right as the reference does."""
        b = self.b
        rows = b.bitcast(b.gep(self.own, [I64(place)]), b.lanes("f32").as_pointer())
        add_squares = load("programs.common", WORDS, Program)["add_squares"]
        total = local(b, b.floats)
        b.store(repeated(0.0, b.floats), total)
        with loop(b, I64(0), self.n_cols, I64(_RUN)) as column:
            start, x = b.add(b.mul(row, self.n_cols), column), b.gep(rows, [column])
            self.load_tile(x, start, self.n_cols, _RUN, I64(_AHEAD * _RUN))
            b.store(unit.call(b, add_squares, [b.load(total), x, 0, _RUN]), total)
        mean = WORDS["div"].build(b, b.load(total), b.sitofp(self.n_cols, F32))
        b.store(mean, self.arrays["row_sigma"])
        return rows

    def load_tile(self, to: ir.Value, start: ir.Value, stride: ir.Value, n: int, ahead: ir.Value) -> None:
        """A run of n weights a lane, from element `start` on, become those at `to`; the bits of the largest magnitude
        are kept.

        Those `ahead` of them, which come later, are asked for: the lanes are more streams than a processor foresees.
        """
        b = self.b
        x = b.bitcast(to, F32.as_pointer())
        with loop(b, I64(0), I64(n), I64(_SIDE)) as i:
            highest = b.load(self.largest)
            for lane in range(0, b.width, _SIDE):
                rows = []
                for k in range(_SIDE):
                    place = b.add(b.add(start, b.mul(stride, I64(lane + k))), i)
                    rows.append(self.widened(load_run(b, self.source, place, _STORED[self.stored], 2)))
                    prefetch(b, b.gep(self.source, [b.add(place, ahead)]))
                    bits = b.and_(b.bitcast(rows[-1], _INT_RUN), repeated(0x7FFFFFFF, _INT_RUN))
                    highest = b.select(b.icmp_unsigned(">", bits, highest), bits, highest)
                for k, run in enumerate(interleave(b, rows)):
                    store_run(b, run, x, b.add(b.mul(b.add(i, I64(k)), I64(b.width)), I64(lane)), 64)
            b.store(highest, self.largest)

    def load_importance(self, start: ir.Value, stride: ir.Value, n: int) -> None:
        """A run of n numbers a lane, from element `start` of the columns on."""
        b = self.b
        to = b.bitcast(self.arrays["importance"], F32.as_pointer())
        with loop(b, I64(0), I64(n), I64(_SIDE)) as i:
            for lane in range(0, b.width, _SIDE):
                places = [b.add(b.add(start, b.mul(stride, I64(lane + k))), i) for k in range(_SIDE)]
                runs = [load_run(b, self.columns, place, _FLOAT_RUN, 4) for place in places]
                for k, run in enumerate(interleave(b, runs)):
                    store_run(b, run, to, b.add(b.mul(b.add(i, I64(k)), I64(b.width)), I64(lane)), 64)

    def widened(self, run: ir.Value) -> ir.Value:
        """Sixteen weights as floats, exactly."""
        b = self.b
        if self.stored == "F32":
            return run
        words = b.zext(run, _INT_RUN)
        if self.stored == "F16":
            return from_half(b, words)
        return from_brain(b, words)

    def see_scales(self, type: QuantType) -> None:
        """Lanes whose block has a scale that is not finite are kept in mind."""
        b, out = self.b, self.arrays["out"]
        for scale in scales_not_finite(type):
            hits = []
            for place, bits in scale:
                wanted = repeated(bits, b.bytes)
                hits.append(b.icmp_unsigned("==", b.and_(b.load(b.gep(out, [I64(place)])), wanted), wanted))
            b.store(b.or_(b.load(self.beyond), functools.reduce(b.and_, hits)), self.beyond)

    def store_tile(self, start: ir.Value, stride: ir.Value, n: int) -> None:
        """out becomes a run of n ≥ 16 bytes a lane; the last 16 bytes of a run overlap the 16 before them."""
        assert n >= _SIDE
        b = self.b
        with loop(b, I64(0), I64(n - _SIDE + 1), I64(_SIDE)) as i:
            self._store_square(start, stride, i)
        if n % _SIDE:
            self._store_square(start, stride, I64(n - _SIDE))

    def _store_square(self, start: ir.Value, stride: ir.Value, i: ir.Value) -> None:
        b = self.b
        out = b.bitcast(self.arrays["out"], I8.as_pointer())
        places = [b.mul(b.add(i, I64(k)), I64(b.width)) for k in range(_SIDE)]
        columns = [load_run(b, out, place, b.bytes, b.width) for place in places]
        for k, runs in enumerate(zipped(b, columns)):
            for lane in range(0, b.width, _SIDE):
                place = b.add(b.add(start, b.mul(stride, I64(lane + k))), i)
                store_run(b, part(b, runs, lane, _SIDE), self.target, place, 1)

    def finish(self) -> str:
        b = self.b
        worst = b.icmp_unsigned(">", b.load(self.largest), repeated(_LARGEST_FINITE, _INT_RUN))
        found = [(worst, BAD_WEIGHT), (b.load(self.beyond), BAD_SCALE)]
        b.ret(b.or_(*(b.select(any_of(b, lanes), I32(bit), I32(0)) for lanes, bit in found)))
        return str(b.module)
