"""The CPU engine: compiled lane programs over tiles of blocks, shared by a pool of threads.

Blocks are independent, so neither tiles nor threads can change a byte.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.encoder import Encoder
from quantmill.qkernels.lanes.loader import sources
from quantmill.qkernels.lanes.native import (
    ALIGNMENT,
    ELEMENT_BYTES,
    HOST,
    compile_module,
    fingerprint,
    kept,
    load,
)
from quantmill.qkernels.plain import require_finite, widen
from quantmill.qkernels.types import TYPES, QuantType

# Weights that a thread takes at a time: enough to be worth a call, few enough that all threads end together.
_SMALLEST_CHUNK, _LARGEST_CHUNK = 1 << 16, 1 << 19


@dataclass(frozen=True)
class Layout:
    """Where arrays of lanes lie in a memory that each thread has to itself.

    places: name → offset in bytes and kind of elements, "f32", "i32" or "u8".
    """

    places: Mapping[str, tuple[int, str]]
    n_bytes: int


def layout_of(arrays: Mapping[str, tuple[int, str]]) -> Layout:
    """The layout of arrays given as name → elements, kind."""
    places, offset = {}, 0
    for name, (count, kind) in arrays.items():
        places[name] = offset, kind
        offset += -(-count * HOST.width * ELEMENT_BYTES[kind] // ALIGNMENT) * ALIGNMENT
    return Layout(places, offset)


@dataclass(frozen=True)
class _Compiled:
    """A function over tiles (`cpu_driver`), what it needs of memory, and its constant tables."""

    drive: Callable[..., int]
    own_bytes: int
    tables: tuple[np.ndarray, ...]

    def memory(self) -> np.ndarray:
        """What a thread needs to itself, aligned."""
        own = np.empty(self.own_bytes + ALIGNMENT, np.uint8)
        return own[-own.ctypes.data % ALIGNMENT :]

    def __call__(
        self, arrays: Sequence[np.ndarray], shape: tuple[int, int], begin: int, end: int, own: np.ndarray
    ) -> bool:
        """Tiles begin … end-1 of rows of a shape; whether the weights in them were finite."""
        given, tables = ([array.ctypes.data for array in some] for some in (arrays, self.tables))
        return self.drive(*given, *shape, begin, end, own.ctypes.data, *tables) == 0


def _from_cache(
    name: str, text: str, family: str, n_tables: int, make: Callable[[], bytes]
) -> Callable[..., int]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    parameters = [*[pointer] * 4, *[number] * 4, *[pointer] * (1 + n_tables)]
    key = fingerprint(text, sources(family))
    return load(kept(name, key, make), "drive", parameters)


@dataclass(frozen=True)
class Parts:
    """What the function of one encoder works with; `kinds` are those of the tables, "f32" or "i32"."""

    layout: Layout
    tables: tuple[np.ndarray, ...]
    kinds: tuple[str, ...]


def parts_of(type: QuantType, encoder: Encoder) -> Parts:
    arrays = {"x": (type.block, "f32"), "out": (type.bytes, "u8"), **encoder.scratch}
    if encoder.uses_row_sigma:
        arrays["row_sigma"] = (1, "f32")
    tables = tuple(np.ascontiguousarray(make()) for make in encoder.tables.values())
    kinds = tuple("f32" if table.dtype == np.float32 else "i32" for table in tables)
    return Parts(layout_of(arrays), tables, kinds)


def tiles_of(encoder: Encoder, n_rows: int, per_row: int) -> int:
    """How many tiles n_rows rows of per_row blocks are: across the rows with importance, else along them."""
    if encoder.uses_importance:
        return -(-n_rows // HOST.width) * per_row
    return -(-n_rows * per_row // HOST.width)


@functools.cache
def _compiled(type: QuantType, encoder: Encoder, source: str) -> _Compiled:
    """The function of one encoder for rows of the type `source`."""
    parts = parts_of(type, encoder)

    def make() -> bytes:
        from quantmill.qkernels.lanes.cpu_driver import text_of

        return compile_module(text_of(type, encoder, source, parts.layout, parts.kinds))

    name = f"{type.name}{'-importance' if encoder.uses_importance else ''}-from-{source}"
    text = repr((name, type.block, type.bytes, encoder.phases, parts.layout, parts.kinds))
    drive = _from_cache(name, text, encoder.family, len(parts.tables), make)
    return _Compiled(drive, parts.layout.n_bytes, parts.tables)


@functools.cache
def _compiled_row_sigma(source: str) -> _Compiled:
    """The mean square of each row of the type `source`."""
    layout = layout_of({"x": (32, "f32")})

    def make() -> bytes:
        from quantmill.qkernels.lanes.cpu_driver import text_of_row_sigma

        return compile_module(text_of_row_sigma(source, layout))

    name = f"row-sigma-from-{source}"
    return _Compiled(_from_cache(name, repr((name, layout)), "common", 0, make), layout.n_bytes, ())


def _spread(n_threads: int, work: Callable[[Iterator[tuple[int, int]]], None], n: int, size: int) -> None:
    """Share n tiles of lanes of `size` weights among threads, this one included.

    Each calls `work` once with an iterator that gives it bounds of tiles as long as there are any left.
    """
    tile = size * HOST.width
    chunk = min(max(_SMALLEST_CHUNK, n * tile // (4 * n_threads)), _LARGEST_CHUNK)
    step = max(1, chunk // tile)
    starts, lock = iter(range(0, n, step)), threading.Lock()

    def bounds() -> Iterator[tuple[int, int]]:
        while True:
            with lock:
                begin = next(starts, n)
            if begin == n:
                return
            yield begin, min(begin + step, n)

    helpers = min(n_threads, -(-n // step)) - 1
    started = [_pool(n_threads).submit(work, bounds()) for _ in range(helpers)]
    try:
        work(bounds())
    finally:
        with lock:
            deque(starts, maxlen=0)  # after an error or an interrupt the others get no more
        wait(started)
    for helper in started:
        helper.result()


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="quantmill")


def encode(
    type: QuantType,
    encoder: Encoder,
    rows: np.ndarray,
    importance: np.ndarray | None,
    n_threads: int,
    stored: str = "F32",
) -> np.ndarray:
    """rows [n_rows, n_cols], importance f32 [n_cols] or None → uint8 [n_rows, row_bytes].

    `stored`: the type of the rows: F32 as float32, F16 or BF16 as uint16.
    Raises QuantizeError for weights that are not finite.
    """
    assert (importance is not None) == encoder.uses_importance
    per_row = rows.shape[1] // type.block
    if not len(rows):
        return np.empty((0, type.row_bytes(rows.shape[1])), np.uint8)
    # A tile is full: of few rows the last is repeated, and what becomes of that is dropped.
    missing = (HOST.width if encoder.uses_importance else -(-HOST.width // per_row)) - len(rows)
    source = np.pad(rows, ((0, missing), (0, 0)), "edge") if missing > 0 else np.ascontiguousarray(rows)
    n_rows, n_cols = shape = source.shape
    out = np.empty((n_rows, type.row_bytes(n_cols)), np.uint8)
    columns = sigma = np.empty(0, np.float32)

    def work(function: _Compiled) -> Callable[[Iterator[tuple[int, int]]], None]:
        def some(bounds: Iterator[tuple[int, int]]) -> None:
            own = function.memory()
            for begin, end in bounds:
                if not function((source, columns, sigma, out), shape, begin, end, own):
                    require_finite(widen(source.view(np.uint8), TYPES[stored]), "weights")

        return some

    if importance is not None:
        columns = np.ascontiguousarray(importance)
    if encoder.uses_row_sigma:
        sigma = np.empty(n_rows, np.float32)
        _spread(n_threads, work(_compiled_row_sigma(stored)), -(-n_rows // HOST.width), n_cols)
    tiles = tiles_of(encoder, n_rows, per_row)
    _spread(n_threads, work(_compiled(type, encoder, stored)), tiles, type.block)
    return out[: len(rows)]
