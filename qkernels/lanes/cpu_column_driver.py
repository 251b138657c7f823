"""Sums over the rows of a matrix, one for each column, as LLVM IR.

    i32 squares(rows, squares, sums, stride, n_rows, n_cols)
    i32 sums(rows, squares, sums, stride, n_rows, n_cols)

rows f32, `stride` bytes from one to the next, of n_cols numbers, which are whole runs of LANES. squares and sums f64
[n_cols]: Σ x² and, of the second function only, Σ x; row after row, in float64, in which the square of a float32 is
exact.
"""

from __future__ import annotations

import llvmlite.ir as ir

from quantmill.qkernels.lanes.cpu_column_shape import LANES
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import (
    F32,
    F64,
    I8,
    I64,
    LaneBuilder,
    function,
    load_run,
    local,
    loop,
    store_run,
)

_FLOATS, _DOUBLES = ir.VectorType(F32, LANES), ir.VectorType(F64, LANES)
_RUNS = 4  # whose sums stay in registers while all rows pass


def text_of(processor: Processor) -> str:
    """The module of both functions."""
    module = ir.Module("quantmill")
    for name in ("squares", "sums"):
        b, given = function(module, name, processor, (I8, F64, F64), 3)
        rows, squares, sums, stride, n_rows, n_cols = given
        targets = [squares, sums] if name == "sums" else [squares]
        wide = I64(_RUNS * LANES)
        whole = b.sub(n_cols, b.srem(n_cols, wide))
        with loop(b, I64(0), whole, wide) as column:
            _columns(b, rows, targets, stride, n_rows, [b.add(column, I64(LANES * i)) for i in range(_RUNS)])
        with loop(b, whole, n_cols, I64(LANES)) as column:
            _columns(b, rows, targets, stride, n_rows, [column])
        b.ret(ir.Constant(ir.IntType(32), 0))
    return str(module)


def _columns(
    b: LaneBuilder,
    rows: ir.Value,
    targets: list[ir.Value],
    stride: ir.Value,
    n_rows: ir.Value,
    columns: list[ir.Value],
) -> None:
    """The sums of the runs that begin at `columns`, in the arrays `targets`: of squares, of numbers if it is asked."""
    totals = [[local(b, _DOUBLES) for _ in columns] for _ in targets]
    for total in (one for some in totals for one in some):
        b.store(ir.Constant(_DOUBLES, [0.0] * LANES), total)
    with loop(b, I64(0), n_rows) as row:
        start = b.bitcast(b.gep(rows, [b.mul(row, stride)]), F32.as_pointer())
        for i, column in enumerate(columns):
            x = b.fpext(load_run(b, start, column, _FLOATS, 4), _DOUBLES)
            for term, some in zip((b.fmul(x, x), x), totals, strict=False):
                b.store(b.fadd(b.load(some[i]), term), some[i])
    for target, some in zip(targets, totals, strict=True):
        for column, total in zip(columns, some, strict=True):
            store_run(b, b.load(total), target, column, 8)
