"""Short products on the CPU: the functions of cpu_product_driver and cpu_tile_driver, compiled, and their memory.

A thread calls them with memory of its own; nothing is shared among threads here.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.cpu_product_shape import (
    BFLOAT16X3,
    BLOCK,
    INT16,
    LANES,
    QUERIES,
    ROWS,
    TILE_ROWS,
    WIDE,
)
from quantmill.qkernels.lanes.native import ALIGNMENT, Processor, functions

# What Linux is asked for before a process uses tiles: the state of a thread grows by 8 KiB.
_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18


@dataclass(frozen=True)
class Rows:
    """Numbers [n_rows, n_cols] of one kind of products, as `room` for them holds them."""

    codes: np.ndarray
    scales: np.ndarray
    n_rows: int
    n_cols: int
    kind: str


def served(processor: Processor) -> tuple[str, ...]:
    """The kinds of products that a processor makes at least twice as fast as float32's, the fastest first."""
    features = processor.features.split(",")
    if processor.register != 16 or "+avx512vnni" not in features:
        return ()
    return (BFLOAT16X3, INT16) if "+amx-bf16" in features else (INT16,)


@functools.cache
def tiles_are_granted() -> bool:
    """Whether the system lets this process use matrix tiles."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILES) == 0


@functools.cache
def _attention(kind: str, processor: Processor) -> Callable[..., int]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_attention_driver import text_of

        return text_of(kind, processor)

    return functions(f"attention-{kind}", text, {"attend": (13, 10)}, processor)["attend"]


def attended(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    factor: float,
    out: np.ndarray,
    kind: str,
    processor: Processor,
) -> None:
    """q, out f32 [n_heads, n_tokens, width], k, v f32 [n_kv, n_tokens, width]; rows are contiguous. Causal."""
    n_heads, n_tokens, width = q.shape
    cols = max(n_tokens, width)

    memory = (
        *packed_room(n_tokens, width, kind),
        *packed_room(width, n_tokens, kind),
        *_entered(QUERIES, cols, kind),
    )
    scores, inverses = _aligned((QUERIES, n_tokens), np.float32), np.empty(QUERIES, np.float32)
    turned = np.ascontiguousarray(v.transpose(0, 2, 1))
    arrays = (q, k, turned, out, np.array([factor], np.float32), *memory, scores, inverses)
    places = [step // 4 for array in (q, k, out) for step in (array.strides[1], array.strides[0])]
    _call(_attention(kind, processor), arrays, (n_heads, n_heads // len(k), n_tokens, width, *places))


@functools.cache
def _functions(kind: str, processor: Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_product_kinds import text_of

        return text_of(kind, processor)

    shapes = {"enter": (3, 3), "pack": (3, 4), "multiply": (5, 5)}
    return functions(f"products-{kind}", text, shapes, processor)


def entered(numbers: np.ndarray, kind: str, processor: Processor) -> Rows:
    """numbers f32 [n_rows, n_cols], contiguous, n_cols whole blocks."""
    n_rows, n_cols = numbers.shape
    codes, scales = _entered(n_rows, n_cols, kind)
    _call(_functions(kind, processor)["enter"], (numbers, codes, scales), (n_rows, n_cols, n_cols))
    return Rows(codes, scales, n_rows, n_cols, kind)


def _entered(n_rows: int, n_cols: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    return _room(n_rows, ROWS if kind == INT16 else TILE_ROWS, n_cols, kind)


def packed_room(n: int, n_cols: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Memory for the codes and scales of a matrix f32 [n, n_cols]."""
    return _room(n, WIDE, n_cols, kind)


def _room(n: int, together: int, n_cols: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    n = -(-n // together) * together
    if kind == INT16:
        return _aligned((n, n_cols), np.int16), _aligned((n, n_cols // BLOCK), np.float32)
    return _aligned((n, 2 * n_cols), np.int16), np.empty(0, np.float32)


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Memory whose vectors do not lie in two lines of the cache."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + n_bytes].view(dtype).reshape(shape)


def multiplied(rows: Rows, matrix: np.ndarray, out: np.ndarray, first: int, processor: Processor) -> None:
    """out[:, first : first + n] = rows · matrixᵀ; matrix f32 [n, n_cols] and out f32 [n_rows, n_all], contiguous."""
    n, n_cols = matrix.shape
    codes, scales = packed_room(n, n_cols, rows.kind)
    compiled = _functions(rows.kind, processor)
    pack = functools.partial(_call, compiled["pack"])
    whole = n // LANES * LANES
    pack((matrix, codes, scales), (n_cols, 0, whole, n_cols))
    if whole < n:
        rest = np.zeros((LANES, n_cols), np.float32)
        rest[: n - whole] = matrix[whole:]
        pack((rest, codes, scales), (n_cols, whole, whole + LANES, n_cols))
    numbers = (rows.n_rows, n_cols // BLOCK, n_cols // BLOCK, n, out.shape[1])
    _call(compiled["multiply"], (rows.codes, rows.scales, codes, scales, out[:, first:]), numbers)


def _call(function: Callable[..., int], arrays: Sequence[np.ndarray], numbers: Sequence[int]) -> None:
    function(*(array.ctypes.data for array in arrays), *numbers)
