"""Products with stored matrices on the CPU: the functions of cpu_matrix_driver, compiled, and what packs for them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from quantmill.qkernels.lanes.cpu_function import Compiled, Shape, compiled, table_kinds
from quantmill.qkernels.lanes.cpu_layout import layout_of
from quantmill.qkernels.lanes.cpu_product_shape import DECODER_TABLES, WIDE, WIDENED, numbers_at_once
from quantmill.qkernels.lanes.cpu_products import Rows, packed_room
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.native import Processor, address_of, functions
from quantmill.qkernels.types import QuantType

# stored rows, codes, scales; blocks of a row, its bytes, the first row
_FILLER = Shape(arrays=3, numbers=3)


@functools.cache
def _functions(kind: str, processor: Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_matrix_driver import text_of

        return text_of(kind, processor)

    shapes = {f"multiply_{n}": (7 + n, 7) for n in DECODER_TABLES}
    # Only their addresses are asked for.
    shapes.update({f"fill_{name}": (0, 0) for name in WIDENED})
    return functions(f"matrices-{kind}", text, shapes, processor)


@functools.cache
def _filler(type: QuantType, decoder: Decoder, kind: str, processor: Processor) -> Compiled:
    tables = tuple(np.ascontiguousarray(make()) for make in decoder.tables.values())
    kinds = table_kinds(tables)
    at_once = numbers_at_once(type.block, decoder.lanes)
    layout = layout_of({"blocks": (type.bytes, "u8"), "y": (at_once, "f32")}, processor)

    def text() -> str:
        from quantmill.qkernels.lanes.cpu_filling_driver import text_of

        return text_of(type, decoder, layout, kinds, kind, processor)

    facts = (type.block, type.bytes, decoder.function, decoder.lanes, decoder.operands, layout, kinds)
    name = f"{type.name}-packed-{kind}"
    return compiled(name, facts, decoder.module, _FILLER, layout.n_bytes, tables, text, processor)


def multiplied(
    rows: Rows,
    stored: np.ndarray,
    type: QuantType,
    decoder: Decoder | None,
    out: np.ndarray,
    processor: Processor,
) -> int:
    """out[:, :n] = rows · matrixᵀ for the first n rows of a matrix, stored u8 [n_all, row_bytes]; both contiguous.

    decoder: None of plain types. Returns n, which leaves out what is left when as many rows as there are lanes are
    taken at a time.
    """
    n_all, row_bytes = stored.shape
    n_cols = rows.n_cols
    n = n_all // processor.width * processor.width
    if not n:
        return 0
    if decoder is None:
        filler = Compiled(
            _functions(rows.kind, processor)[f"fill_{type.name}"], 4 * processor.width * n_cols, ()
        )
    else:
        filler = _filler(type, decoder, rows.kind, processor)
    arrays = (
        rows.codes,
        rows.scales,
        stored,
        *packed_room(WIDE, n_cols, rows.kind),
        out,
        filler.memory(),
        *filler.tables,
    )
    sizes = (rows.n_rows, n_cols, n, n_cols // type.block, row_bytes, out.shape[1])
    multiply = _functions(rows.kind, processor)[f"multiply_{len(filler.tables)}"]
    multiply(*(array.ctypes.data for array in arrays), address_of(filler.drive), *sizes)
    return n
