"""Blocks of one type to blocks of another: a thread decodes rows into memory of its own and searches them there.

The rows that are decoded at a time stay in a cache; float32 exists nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.cpu import compiled_encoder, tiles_of
from quantmill.qkernels.lanes.cpu_decode import compiled_decoder
from quantmill.qkernels.lanes.cpu_encoder_shape import BAD_SCALE, BAD_WEIGHT
from quantmill.qkernels.lanes.cpu_threads import spread
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.types import QuantType

# Weights decoded at a time where rows need not stay whole: enough to be worth the calls, few enough for a cache.
_PIECE = 1 << 16


@dataclass(frozen=True)
class _Work:
    """Rows of n_cols weights in both types, `step` of them at a time."""

    source: QuantType
    decoder: Decoder
    type: QuantType
    encoder: Encoder
    raw: np.ndarray
    out: np.ndarray
    importance: np.ndarray
    n_cols: int
    step: int
    processor: Processor
    found: list[int]  # what the searches say of their pieces

    @property
    def n_pieces(self) -> int:
        return -(-len(self.raw) // self.step)

    def place(self, piece: int) -> tuple[int, int]:
        """The first row of a piece and how many it has; the last one has enough for a tile, some of them again."""
        first = piece * self.step
        n = min(self.step, len(self.raw) - first)
        return (
            (first, n)
            if n >= self.processor.width
            else (len(self.raw) - self.processor.width, self.processor.width)
        )

    def some(self, bounds: Iterator[tuple[int, int]]) -> None:
        """What one thread does. Raises FloatingPointError for a decoded weight that is not finite."""
        read = compiled_decoder(self.source, self.decoder, "F32", self.processor)
        search = compiled_encoder(self.type, self.encoder, "F32", self.processor)
        rows = np.empty((self.step, self.n_cols), np.float32)
        memories = read.memory(), search.memory(self.n_cols)
        # A call costs less than asking an array for its address.
        raw, decoded, columns, out = (
            array.ctypes.data for array in (self.raw, rows, self.importance, self.out)
        )
        reading, searching = (memory.ctypes.data for memory in memories)
        for begin, end in bounds:
            for first, n in map(self.place, range(begin, end)):
                n_blocks = n * self.n_cols // self.source.block
                stored = raw + first * self.raw.shape[1]
                read.at((stored, decoded), (n_blocks, 0, -(-n_blocks // self.processor.width)), reading)
                tiles = tiles_of(self.encoder, n, self.n_cols // self.type.block, self.processor)
                given = (decoded, columns, columns, out + first * self.out.shape[1])
                said = search.at(given, (n, self.n_cols, 0, tiles), searching)
                self.found.append(said)
                if said & BAD_WEIGHT:
                    raise FloatingPointError


def requantize(
    source: QuantType,
    decoder: Decoder,
    type: QuantType,
    encoder: Encoder,
    raw: np.ndarray,
    importance: np.ndarray | None,
    n_threads: int,
    processor: Processor,
) -> tuple[np.ndarray, bool] | None:
    """raw u8 [n_rows, row_bytes] of `source`, importance f32 [n_cols] or None → u8 [n_rows, row_bytes] of `type`, and
    whether all scales of it are finite.

    The bytes are those of quantizing the decoded rows. None: a weight is not finite.
    """
    assert (importance is not None) == encoder.uses_importance
    n_rows, n_cols = len(raw), raw.shape[1] // source.bytes * source.block
    out = np.empty((n_rows, type.row_bytes(n_cols)), np.uint8)
    if not out.size:
        return out, True
    whole = np.ascontiguousarray(raw)
    columns, step = importance, processor.width
    if importance is None:  # all blocks are alike, so the rows may be cut where blocks of both types begin
        n_cols = max(source.block, type.block)
        columns, step = np.empty(0, np.float32), max(processor.width, _PIECE // n_cols)
    assert columns is not None
    whole = whole.reshape(-1, n_cols // source.block * source.bytes)
    missing = max(0, processor.width - len(whole))
    whole = np.pad(whole, ((0, missing), (0, 0)), "edge") if missing else whole
    blocks = np.empty((len(whole), type.row_bytes(n_cols)), np.uint8) if missing else out
    work = _Work(
        source,
        decoder,
        type,
        encoder,
        whole,
        blocks.reshape(len(whole), -1),
        np.ascontiguousarray(columns),
        n_cols,
        min(step, len(whole)),
        processor,
        [],
    )
    try:
        spread(n_threads, work.some, work.n_pieces, work.step * n_cols)
    except FloatingPointError:
        return None
    done = blocks.reshape(-1)[: out.size].reshape(out.shape)
    return done, not any(one & BAD_SCALE for one in work.found)
