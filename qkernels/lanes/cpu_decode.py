"""The CPU engine's decoders: compiled lane programs over tiles of blocks, shared by a pool of threads."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from quantmill.qkernels.lanes.cpu_function import Compiled, Shape, compiled, table_kinds
from quantmill.qkernels.lanes.cpu_layout import layout_of
from quantmill.qkernels.lanes.cpu_threads import spread
from quantmill.qkernels.lanes.decoder import Decoder
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.types import QuantType

# blocks, numbers; how many blocks, first and last tile
_SHAPE = Shape(arrays=2, numbers=3)


@functools.cache
def compiled_decoder(type: QuantType, decoder: Decoder, target: str, processor: Processor) -> Compiled:
    """The function that decodes blocks of a type to F32, F16 or BF16."""
    tables = tuple(np.ascontiguousarray(make()) for make in decoder.tables.values())
    kinds = table_kinds(tables)
    layout = layout_of({"blocks": (type.bytes, "u8"), "y": (type.block // decoder.lanes, "f32")}, processor)

    def text() -> str:
        from quantmill.qkernels.lanes.cpu_decode_driver import text_of

        return text_of(type, decoder, target, layout, kinds, processor)

    facts = (type.block, type.bytes, decoder.function, decoder.lanes, decoder.operands, layout, kinds)
    name = f"{type.name}-to-{target}"
    return compiled(name, facts, decoder.module, _SHAPE, layout.n_bytes, tables, text, processor)


def decode(
    type: QuantType,
    decoder: Decoder,
    blocks: np.ndarray,
    out: np.ndarray,
    target: str,
    n_threads: int,
    processor: Processor,
) -> None:
    """blocks u8 [n_blocks, bytes] → out [n_blocks, block] of the type `target`, both contiguous."""
    n_blocks = len(blocks)
    if not n_blocks:
        return
    if (
        n_blocks < processor.width
    ):  # a tile is full: the last block is repeated, and what becomes of that is dropped
        padded = np.pad(blocks, ((0, processor.width - n_blocks), (0, 0)), "edge")
        whole = np.empty((processor.width, type.block), out.dtype)
        decode(type, decoder, padded, whole, target, 1, processor)
        out[:] = whole[:n_blocks]
        return
    function = compiled_decoder(type, decoder, target, processor)

    def work(bounds: Iterator[tuple[int, int]]) -> None:
        own = function.memory()
        for begin, end in bounds:
            function((blocks, out), (n_blocks, begin, end), own)

    spread(n_threads, work, -(-n_blocks // processor.width), type.block * processor.width)
