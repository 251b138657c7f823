"""The CPU engine: compiled lane programs over tiles of blocks, shared by a pool of threads.

Blocks are independent, so neither tiles nor threads can change a byte.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.checks import require_finite, scales_not_finite
from quantmill.qkernels.lanes.cpu_encoder_shape import BAD_SCALE, BAD_WEIGHT
from quantmill.qkernels.lanes.cpu_function import Compiled, Shape, compiled, table_kinds
from quantmill.qkernels.lanes.cpu_layout import Layout, layout_of
from quantmill.qkernels.lanes.cpu_plain import convert
from quantmill.qkernels.lanes.cpu_threads import spread
from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.lanes.native import ELEMENT_BYTES, Processor
from quantmill.qkernels.types import QuantType

# source, columns, sigma, target; rows, columns, first and last tile
_SHAPE = Shape(arrays=4, numbers=4)


@dataclass(frozen=True)
class Parts:
    """What the function of one encoder works with; `kinds` are those of the tables, "f32" or "i32"; column_bytes: of
    memory behind the layout for each column of the rows."""

    layout: Layout
    tables: tuple[np.ndarray, ...]
    kinds: tuple[str, ...]
    column_bytes: int


def parts_of(type: QuantType, encoder: Encoder, processor: Processor, apart: bool = False) -> Parts:
    """apart: blocks have an importance of their own."""
    arrays = {"x": (type.block, "f32"), "out": (type.bytes, "u8"), **encoder.scratch}
    if apart:
        arrays["importance"] = (type.block, "f32")
    if encoder.uses_row_sigma:
        arrays["row_sigma"] = (1, "f32")
    tables = tuple(np.ascontiguousarray(make()) for make in encoder.tables.values())
    column_bytes = _column_bytes(processor) if encoder.uses_row_sigma and not apart else 0
    return Parts(layout_of(arrays, processor), tables, table_kinds(tables), column_bytes)


def _column_bytes(processor: Processor) -> int:
    """Of the whole rows of a tile, which are kept where their mean square counts."""
    return processor.width * ELEMENT_BYTES["f32"]


def tiles_of(encoder: Encoder, n_rows: int, per_row: int, processor: Processor) -> int:
    """How many tiles n_rows rows of per_row blocks are: across the rows with importance, whole rows where their mean
    square counts, else along them."""
    if encoder.uses_row_sigma:
        return -(-n_rows // processor.width)
    if encoder.uses_importance:
        return -(-n_rows // processor.width) * per_row
    return -(-n_rows * per_row // processor.width)


@functools.cache
def compiled_encoder(
    type: QuantType, encoder: Encoder, source: str, processor: Processor, apart: bool = False
) -> Compiled:
    """The function of one encoder for rows of the type `source`; or for blocks that are apart."""
    parts = parts_of(type, encoder, processor, apart)

    def text() -> str:
        from quantmill.qkernels.lanes.cpu_driver import text_of

        return text_of(type, encoder, source, parts.layout, parts.kinds, processor, apart)

    weighted = "-importance" if encoder.uses_importance else ""
    name = f"{type.name}{weighted}-from-{source}{'-apart' if apart else ''}"
    phases = tuple((phase.function, phase.arguments, phase.lanes) for phase in encoder.phases)
    facts = (type.block, type.bytes, scales_not_finite(type), phases, parts.layout, parts.kinds)
    own_bytes = parts.layout.n_bytes
    return compiled(
        name, facts, encoder.module, _SHAPE, own_bytes, parts.tables, text, processor, parts.column_bytes
    )


@functools.cache
def compiled_row_sigma(source: str, processor: Processor) -> Compiled:
    """The mean square of each row of the type `source`."""
    layout = layout_of({"row_sigma": (1, "f32")}, processor)

    def text() -> str:
        from quantmill.qkernels.lanes.cpu_driver import text_of_row_sigma

        return text_of_row_sigma(source, layout, processor)

    name = f"row-sigma-from-{source}"
    per_column = _column_bytes(processor)
    return compiled(name, layout, "programs.common", _SHAPE, layout.n_bytes, (), text, processor, per_column)


def encode(
    type: QuantType,
    encoder: Encoder,
    rows: np.ndarray,
    importance: np.ndarray | None,
    n_threads: int,
    processor: Processor,
    stored: str = "F32",
) -> tuple[np.ndarray, bool]:
    """rows [n_rows, n_cols], importance f32 [n_cols] or None → uint8 [n_rows, row_bytes], and whether all scales of it
    are finite.

    `stored`: the type of the rows: F32 as float32, F16 or BF16 as uint16.
    Raises NotFiniteError for weights that are not.
    """
    assert (importance is not None) == encoder.uses_importance
    per_row = rows.shape[1] // type.block
    if not len(rows):
        return np.empty((0, type.row_bytes(rows.shape[1])), np.uint8), True
    # A tile is full: of few rows the last is repeated, and what becomes of that is dropped.
    missing = (processor.width if encoder.uses_importance else -(-processor.width // per_row)) - len(rows)
    source = np.pad(rows, ((0, missing), (0, 0)), "edge") if missing > 0 else np.ascontiguousarray(rows)
    n_rows, n_cols = shape = source.shape
    out = np.empty((n_rows, type.row_bytes(n_cols)), np.uint8)
    columns = np.empty(0, np.float32) if importance is None else np.ascontiguousarray(importance)
    function = compiled_encoder(type, encoder, stored, processor)
    # A call costs less than asking an array for its address. No sigma is read of blocks that are not apart.
    given = [array.ctypes.data for array in (source, columns, columns, out)]
    found: list[int] = []

    def some(bounds: Iterator[tuple[int, int]]) -> None:
        own = function.memory(n_cols)
        place = own.ctypes.data
        for begin, end in bounds:
            said = function.at(given, (*shape, begin, end), place)
            found.append(said)
            if said & BAD_WEIGHT:
                numbers = np.empty(shape, np.float32)
                convert(source, stored, numbers, "F32", 1, processor)
                require_finite(numbers)

    tiles = tiles_of(encoder, n_rows, per_row, processor)
    spread(n_threads, some, tiles, source.size // tiles)
    return out[: len(rows)], not any(one & BAD_SCALE for one in found)


def encode_apart(
    type: QuantType,
    encoder: Encoder,
    blocks: np.ndarray,
    importance: np.ndarray | None,
    sigma: np.ndarray | None,
    processor: Processor,
) -> np.ndarray:
    """Finite blocks f32 [n, block] of any rows, each with its importance f32 [n, block] and the mean square of its row,
    f32 [n], where the encoder uses them → uint8 [n, bytes], as `encode` makes them of whole rows. On this thread."""
    assert (importance is not None) == encoder.uses_importance
    assert (sigma is not None) == encoder.uses_row_sigma
    if importance is None:
        return encode(type, encoder, blocks, None, 1, processor)[0]
    n = len(blocks)
    missing = max(0, processor.width - n)  # a tile is full: the last block is repeated
    given = [np.pad(one, ((0, missing), (0, 0)), "edge") if missing else one for one in (blocks, importance)]
    source, columns = map(np.ascontiguousarray, given)
    sigma = np.empty(0, np.float32) if sigma is None else np.pad(sigma, (0, missing), "edge")
    out = np.empty((len(source), type.bytes), np.uint8)
    function = compiled_encoder(type, encoder, "F32", processor, apart=True)
    tiles = -(-len(source) // processor.width)
    found = function((source, columns, sigma, out), (*source.shape, 0, tiles), function.memory())
    assert not found & BAD_WEIGHT
    return out[:n]


def row_sigmas(rows: np.ndarray, stored: str, processor: Processor) -> np.ndarray:
    """rows [n, n_cols] of the type `stored`, as `encode` takes them → their mean squares, f32 [n]. On this thread."""
    missing = max(0, processor.width - len(rows))
    source = np.pad(rows, ((0, missing), (0, 0)), "edge") if missing else np.ascontiguousarray(rows)
    sigma = np.empty(len(source), np.float32)
    unused = np.empty(0, np.float32)
    function = compiled_row_sigma(stored, processor)
    tiles = -(-len(source) // processor.width)
    function((source, unused, sigma, unused), (*source.shape, 0, tiles), function.memory(source.shape[1]))
    return sigma[: len(rows)]
