"""Products of whole numbers on the CPU: the functions of cpu_product_driver, compiled, and the memory they work in.

A thread calls them with memory of its own; nothing is shared among threads here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, LANES, QUERIES, ROWS, WIDE
from quantmill.qkernels.lanes.native import Processor, functions


@dataclass(frozen=True)
class Rows:
    """Numbers [n_rows, n_cols] as codes i16 [n_rows and a few more, n_cols] and scales f32 [.., n_cols / BLOCK]."""

    codes: np.ndarray
    scales: np.ndarray
    n_rows: int


def served(processor: Processor) -> bool:
    """Whether a processor adds products of 16 bits as fast as this asks for."""
    return processor.register == 16 and "+avx512vnni" in processor.features.split(",")


@functools.cache
def _attention(processor: Processor) -> Callable[..., int]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_attention_driver import text_of

        return text_of(processor)

    return functions("attention", text, {"attend": (13, 10)}, processor)["attend"]


def attended(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, factor: float, out: np.ndarray, processor: Processor
) -> None:
    """q, out f32 [n_heads, n_tokens, width], k, v f32 [n_kv, n_tokens, width]; rows are contiguous. Causal."""
    n_heads, n_tokens, width = q.shape
    rows = -(-QUERIES // ROWS) * ROWS
    cols = max(n_tokens, width)

    memory = (*room(n_tokens, width), *room(width, n_tokens), *room(rows, cols))
    scores, inverses = np.empty((rows, n_tokens), np.float32), np.empty(rows, np.float32)
    turned = np.ascontiguousarray(v.transpose(0, 2, 1))
    arrays = (q, k, turned, out, np.array([factor], np.float32), *memory, scores, inverses)
    places = [step // 4 for array in (q, k, out) for step in (array.strides[1], array.strides[0])]
    _call(_attention(processor), arrays, (n_heads, n_heads // len(k), n_tokens, width, *places))


@functools.cache
def _functions(processor: Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_product_driver import text_of

        return text_of(processor)

    return functions("products", text, {"enter": (3, 3), "pack": (3, 4), "multiply": (5, 5)}, processor)


def entered(numbers: np.ndarray, processor: Processor) -> Rows:
    """numbers f32 [n_rows, n_cols], contiguous, n_cols whole blocks."""
    n_rows, n_cols = numbers.shape
    padded = -(-n_rows // ROWS) * ROWS
    codes = np.empty((padded, n_cols), np.int16)
    scales = np.empty((padded, n_cols // BLOCK), np.float32)
    _call(_functions(processor)["enter"], (numbers, codes, scales), (n_rows, n_cols, n_cols))
    return Rows(codes, scales, n_rows)


def room(n: int, n_cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory for the codes and scales of a matrix f32 [n, n_cols]."""
    packed = -(-n // WIDE) * WIDE
    return np.empty((packed, n_cols), np.int16), np.empty((packed, n_cols // BLOCK), np.float32)


def multiplied(rows: Rows, matrix: np.ndarray, out: np.ndarray, first: int, processor: Processor) -> None:
    """out[:, first : first + n] = rows · matrixᵀ; matrix f32 [n, n_cols] and out f32 [n_rows, n_all], contiguous."""
    n, n_cols = matrix.shape
    codes, scales = room(n, n_cols)
    compiled = _functions(processor)
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
