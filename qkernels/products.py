"""Products of matrices by shorter numbers, on processors that add such products much faster than float32's.

"int16": each BLOCK numbers of a row share a float32 scale and have codes of ± 16383, of the matrix of ± 4095; sums of
a block are exact, sums of blocks are float32's. A product is off by some 1e-4 of its size, between float32 (1e-7) and
bfloat16 (3e-3). "bfloat16x3": a number is the sum of two bfloat16, a product of two numbers three of them (the two
lesser parts are not multiplied), sums are float32's; a product is off by some 5e-6.

Of both: whatever the sizes of other rows and blocks; infinities and NaN give what is not finite. Rows do not depend on
each other, nor on threads.
"""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.api import dequantize
from quantmill.qkernels.decoders import decoder_of
from quantmill.qkernels.lanes import cpu_matrix, cpu_products, native
from quantmill.qkernels.lanes.cpu_product_shape import BFLOAT16X3, BLOCK, INT16
from quantmill.qkernels.lanes.cpu_products import Rows
from quantmill.qkernels.types import readable_type

__all__ = [
    "BFLOAT16X3",
    "BLOCK",
    "INT16",
    "Rows",
    "attended",
    "entered",
    "multiplied",
    "multiplied_by_stored",
    "served",
]


def served() -> tuple[str, ...]:
    """The kinds that this processor can do, the fastest first: "bfloat16x3" needs AMX, "int16" AVX512-VNNI."""
    kinds = cpu_products.served(native.host())
    return tuple(kind for kind in kinds if kind != BFLOAT16X3 or cpu_products.tiles_are_granted())


def entered(numbers: np.ndarray, kind: str) -> Rows:
    """What will be multiplied, f32 [n_rows, n_cols], by a kind that is served; n_cols are whole blocks."""
    assert numbers.dtype == np.float32
    assert numbers.shape[1] % BLOCK == 0
    return cpu_products.entered(np.ascontiguousarray(numbers), kind, native.host())


def multiplied(rows: Rows, matrix: np.ndarray, out: np.ndarray, first: int = 0) -> None:
    """out[:, first : first + n] = rows · matrixᵀ, on the caller's thread.

    matrix f32 [n, n_cols]; out f32 [n_rows, at least first + n].
    """
    assert matrix.dtype == out.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert out.flags.c_contiguous
    assert matrix.shape[1] == rows.n_cols
    assert len(out) == rows.n_rows
    assert first + len(matrix) <= out.shape[1]
    cpu_products.multiplied(rows, matrix, out, first, native.host())


def multiplied_by_stored(rows: Rows, stored: np.ndarray, type: str, out: np.ndarray) -> None:
    """out = rows · matrixᵀ, on the caller's thread: what multiplied() gives with the decoded matrix, to the bit.

    stored u8 [n, row_bytes], rows of any type that can be read; out f32 [n_rows, n]. A few rows of the matrix are
    decoded at a time, into memory that stays in a cache.
    """
    kind = readable_type(type)
    assert stored.dtype == np.uint8
    assert out.dtype == np.float32
    assert stored.flags.c_contiguous
    assert out.flags.c_contiguous
    assert stored.shape[1] // kind.bytes * kind.block == rows.n_cols
    assert out.shape == (rows.n_rows, len(stored))
    decoder = None if kind.family == "plain" else decoder_of(kind.name)
    done = cpu_matrix.multiplied(rows, stored, kind, decoder, out, native.host())
    if done < len(stored):
        rest = dequantize(stored[done:], kind.name, threads=1)
        cpu_products.multiplied(rows, rest, out, done, native.host())


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, factor: float, out: np.ndarray, kind: str) -> None:
    """Causal attention: out = softmax(factor · q kᵀ, of each token those up to it) v, on the caller's thread.

    q, out f32 [n_heads, n_tokens, width], k, v f32 [n_kv, n_tokens, width], a head of which serves n_heads / n_kv one
    after the other; only rows need be contiguous. Tokens and width are whole BLOCKs.
    """
    assert q.shape[1] % BLOCK == q.shape[2] % BLOCK == 0
    assert q.shape == out.shape
    assert k.shape == v.shape
    assert k.shape[1:] == q.shape[1:]
    assert len(q) % len(k) == 0
    assert all(array.dtype == np.float32 and array.strides[2] == 4 for array in (q, k, v, out))
    cpu_products.attended(q, k, v, factor, out, kind, native.host())
