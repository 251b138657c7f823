"""The CPU engine: lane programs compiled by numba, tiles of blocks, a pool of threads.

For each encoder a driver is written as text: it loads a tile of WIDTH blocks transposed (`[element][lane]`), calls the
phases and writes the bytes back block by block. Threads share the blocks in chunks; blocks are independent, so neither
chunks nor threads can change a byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import types

from qkernels.lanes.compiled import cached, entry, inner
from qkernels.lanes.cpu_snap import WORDS
from qkernels.lanes.cpu_words import WIDTH
from qkernels.lanes.encoder import Encoder
from qkernels.lanes.loader import load, sources
from qkernels.lanes.simd import transpose16
from qkernels.plain import require_finite
from qkernels.types import QuantType

_NUMPY_NAMES = {"f32": "np.float32", "i32": "np.int32", "u8": "np.uint8"}
_F32_IN = types.Array(types.float32, 1, "C", readonly=True)
_I32_IN = types.Array(types.int32, 1, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 1, "C")
# Blocks a thread takes at a time: a few milliseconds of the cheapest search.
_CHUNK = 64 * WIDTH


@inner
def load_blocks(source, first, live, size, tile, edge):
    """`live` ≤ WIDTH blocks of `size` elements from `first` on → tile[element][lane]; a short tile repeats its last."""
    if live < WIDTH:
        for lane in range(WIDTH):
            start = (first + min(lane, live - 1)) * size
            for i in range(size):
                edge[lane * size + i] = source[start + i]
        for lane in range(0, WIDTH, 16):
            for i in range(0, size, 16):
                transpose16(edge, lane * size + i, size, tile, i * WIDTH + lane, WIDTH)
    else:
        for lane in range(0, WIDTH, 16):
            for i in range(0, size, 16):
                transpose16(source, (first + lane) * size + i, size, tile, i * WIDTH + lane, WIDTH)


@inner
def store_blocks(tile, size, target, first, live, edge):
    """tile[byte][lane] → `live` blocks of `size` ≥ 16 bytes; the last 16 bytes overlap the run before them."""
    if live < WIDTH:
        for lane in range(0, WIDTH, 16):
            for k in range(0, size - 15, 16):
                transpose16(tile, k * WIDTH + lane, WIDTH, edge, lane * size + k, size)
            transpose16(tile, (size - 16) * WIDTH + lane, WIDTH, edge, lane * size + size - 16, size)
        for k in range(live * size):
            target[first * size + k] = edge[k]
    else:
        for lane in range(0, WIDTH, 16):
            for k in range(0, size - 15, 16):
                transpose16(tile, k * WIDTH + lane, WIDTH, target, (first + lane) * size + k, size)
            transpose16(
                tile, (size - 16) * WIDTH + lane, WIDTH, target, (first + lane) * size + size - 16, size
            )


def _driver_text(encoder: Encoder, block: int, n_bytes: int) -> str:
    """The driver's source. Arrays and tables get a prefix, so that one named "min" hides no function."""
    given = [
        "source",
        "columns",
        "sigma",
        "target",
        "per_row",
        "begin",
        "end",
        *(f"a_{t}" for t in encoder.tables),
    ]
    arrays = {"x": (block, "f32"), "out": (n_bytes, "u8"), **encoder.scratch}
    if encoder.uses_importance:
        arrays["importance"] = (block, "f32")
    if encoder.uses_row_sigma:
        arrays["row_sigma"] = (1, "f32")
    lines = [f"def drive({', '.join(given)}):"]
    for name, (count, kind) in arrays.items():
        lines.append(f"    a_{name} = np.empty({count * WIDTH}, {_NUMPY_NAMES[kind]})")
    lines += [
        f"    edge = np.empty({block * WIDTH}, np.float32)",
        f"    byte_edge = np.empty({n_bytes * WIDTH}, np.uint8)",
        f"    for first in range(begin, end, {WIDTH}):",
        f"        live = min({WIDTH}, end - first)",
        f"        load_blocks(source, first, live, {block}, a_x, edge)",
    ]
    if encoder.uses_importance:
        # `columns` repeats the row's importance far enough that any WIDTH consecutive blocks are contiguous in it.
        lines.append(f"        load_blocks(columns, first % per_row, {WIDTH}, {block}, a_importance, edge)")
    if encoder.uses_row_sigma:
        lines.append(f"        for lane in range({WIDTH}):")
        lines.append("            a_row_sigma[lane] = sigma[(first + min(lane, live - 1)) // per_row]")
    for phase in encoder.phases:
        arguments = (f"a_{a}" if isinstance(a, str) else str(a) for a in phase.arguments)
        lines.append(f"        for j in range({phase.lanes}):")
        lines.append(f"            {phase.function}(j, {', '.join(arguments)})")
    lines.append(f"        store_blocks(a_out, {n_bytes}, target, first, live, byte_edge)")
    return "\n".join(lines) + "\n"


def _table_type(table: np.ndarray) -> types.Array:
    return types.Array(types.float32 if table.dtype == np.float32 else types.int32, 1, "C", readonly=True)


@functools.cache
def _compiled(type: QuantType, encoder: Encoder) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The driver of one encoder, compiled or from the cache, and its constant tables."""
    tables = tuple(np.ascontiguousarray(make()) for make in encoder.tables.values())
    functions = load(encoder.family, WORDS, inner)
    namespace = {**functions, "np": np, "load_blocks": load_blocks, "store_blocks": store_blocks}
    name = f"{type.name}{'_weighted' if encoder.uses_importance else ''}"
    text = _driver_text(encoder, type.block, type.bytes)
    exec(compile(text, f"<driver of {name}>", "exec"), namespace)
    signature = types.void(
        _F32_IN,
        _F32_IN,
        _F32_IN,
        _BYTES_OUT,
        types.int64,
        types.int64,
        types.int64,
        *map(_table_type, tables),
    )
    return cached(entry(namespace["drive"]), signature, name, text, sources(encoder.family)), tables


@entry
def _row_sigma(rows, n_cols, first, last, sigma):
    """Mean square of each row, summed from left to right as the reference does; 16 rows side by side."""
    tile = np.empty(256, np.float32)
    totals = np.empty(16, np.float32)
    for row in range(first, last, 16):
        live = min(16, last - row)
        totals[:] = 0
        for c in range(0, n_cols, 16):
            if live == 16:
                transpose16(rows, row * n_cols + c, n_cols, tile, 0, 16)
            else:
                for lane in range(16):
                    for i in range(16):
                        tile[i * 16 + lane] = rows[(row + min(lane, live - 1)) * n_cols + c + i]
            for i in range(16):
                for lane in range(16):
                    totals[lane] += tile[i * 16 + lane] * tile[i * 16 + lane]
        for lane in range(live):
            sigma[row + lane] = totals[lane] / np.float32(n_cols)


@functools.cache
def _compiled_row_sigma() -> Callable[..., None]:
    signature = types.void(_F32_IN, types.int64, types.int64, types.int64, types.Array(types.float32, 1, "C"))
    return cached(_row_sigma, signature, "row_sigma", "", [])


def _spread(pool: ThreadPoolExecutor | None, work: Callable[[int, int], None], n: int, chunk: int) -> None:
    """Call work(begin, end) for 0 … n in chunks, on the pool's threads or here."""
    bounds = [(begin, min(begin + chunk, n)) for begin in range(0, n, chunk)]
    if pool is None or len(bounds) == 1:
        for begin, end in bounds:
            work(begin, end)
        return
    for done in [pool.submit(work, begin, end) for begin, end in bounds]:
        done.result()


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="quantmill")


def encode(
    type: QuantType, encoder: Encoder, rows: np.ndarray, importance: np.ndarray | None, n_threads: int
) -> np.ndarray:
    """rows f32 [n_rows, n_cols], importance f32 [n_cols] or None → uint8 [n_rows, row_bytes].

    Raises QuantizeError for weights that are not finite.
    """
    n_rows, n_cols = rows.shape
    per_row = n_cols // type.block
    source = np.ascontiguousarray(rows).reshape(-1)
    out = np.empty((n_rows, type.row_bytes(n_cols)), np.uint8)
    target = out.reshape(-1)
    columns = sigma = source[:0]
    pool = _pool(n_threads) if n_threads > 1 else None
    if encoder.uses_importance:
        assert importance is not None
        columns = np.resize(importance, (per_row + WIDTH) * type.block)
    if encoder.uses_row_sigma:
        sigma = np.empty(n_rows, np.float32)
        sums = _compiled_row_sigma()
        _spread(pool, lambda b, e: sums(source, n_cols, b, e, sigma), n_rows, max(16, 2**19 // n_cols))
    drive, tables = _compiled(type, encoder)

    def work(begin: int, end: int) -> None:
        # Checked here, where threads share the work and the chunk is about to be read anyway.
        if not np.isfinite(source[begin * type.block : end * type.block]).all():
            require_finite(rows, "weights")
        drive(source, columns, sigma, target, per_row, begin, end, *tables)

    _spread(pool, work, n_rows * per_row, _CHUNK * 256 // type.block)
    return out
