"""Products with stored matrices on the CPU: the functions of cpu_matrix_driver, compiled, and what decodes for them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from quantmill.qkernels.lanes.cpu_decode import compiled_decoder
from quantmill.qkernels.lanes.cpu_function import Compiled
from quantmill.qkernels.lanes.cpu_product_shape import DECODER_TABLES, LANES, WIDE, WIDENED
from quantmill.qkernels.lanes.cpu_products import Rows, room
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.native import Processor, address_of, functions
from quantmill.qkernels.types import QuantType


@functools.cache
def _functions(processor: Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_matrix_driver import text_of

        return text_of(processor)

    shapes = {f"multiply_{n}": (8 + n, 9) for n in DECODER_TABLES}
    # Only their addresses are asked for.
    shapes.update({f"widen_{name}": (0, 0) for name in WIDENED})
    return functions("matrices", text, shapes, processor)


def _reader(type: QuantType, decoder: Decoder | None, processor: Processor) -> Compiled:
    """What decodes a type, None of a plain one, to F32."""
    if decoder is not None:
        return compiled_decoder(type, decoder, "F32", processor)
    return Compiled(_functions(processor)[f"widen_{type.name}"], 0, ())


def multiplied(
    rows: Rows,
    stored: np.ndarray,
    type: QuantType,
    decoder: Decoder | None,
    out: np.ndarray,
    processor: Processor,
) -> int:
    """out[:, :n] = rows · matrixᵀ for the first n rows of a matrix, stored u8 [n_all, row_bytes]; both contiguous.

    Returns n, which leaves out a few rows at the end: those that are not enough to be decoded together.
    """
    n_all, row_bytes = stored.shape
    n_cols = rows.codes.shape[1]
    in_row = n_cols // type.block
    together = next((n for n in (LANES, WIDE) if n * in_row >= processor.width), 0)
    n = n_all // together * together if together else 0
    if not n:
        return 0
    reader = _reader(type, decoder, processor)
    own, numbers = reader.memory(), np.empty((together, n_cols), np.float32)
    n_blocks = together * in_row
    arrays = (rows.codes, rows.scales, stored, numbers, *room(WIDE, n_cols), out, own, *reader.tables)
    sizes = (rows.n_rows, n_cols, n, together, row_bytes, n_blocks, -(-n_blocks // processor.width))
    multiply = _functions(processor)[f"multiply_{len(reader.tables)}"]
    multiply(*(array.ctypes.data for array in arrays), address_of(reader.drive), *sizes, out.shape[1])
    return n
