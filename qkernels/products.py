"""Products of matrices by whole numbers of 16 bits, on processors that add such products twice as fast as float32's.

Each BLOCK numbers of a row share a float32 scale and have codes of ± 16383, of the matrix of ± 4095; sums of a block
are exact, sums of blocks are float32's. A product is off by some 1e-4 of its size, between float32 (1e-7) and bfloat16
(3e-3), whatever the sizes of other rows and blocks; infinities and NaN give what is not finite. Rows do not depend on
each other, nor on threads.
"""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.lanes import cpu_products, native
from quantmill.qkernels.lanes.cpu_product_shape import BLOCK, WIDE
from quantmill.qkernels.lanes.cpu_products import Rows

__all__ = ["BLOCK", "WIDE", "Rows", "are_served", "entered", "multiplied"]


def are_served() -> bool:
    """Whether this processor can do it (AVX512-VNNI)."""
    return cpu_products.served(native.host())


def entered(numbers: np.ndarray) -> Rows:
    """What will be multiplied, f32 [n_rows, n_cols]; n_cols are whole blocks."""
    assert numbers.dtype == np.float32
    assert numbers.shape[1] % BLOCK == 0
    return cpu_products.entered(np.ascontiguousarray(numbers), native.host())


def multiplied(rows: Rows, matrix: np.ndarray, out: np.ndarray, first: int = 0) -> None:
    """out[:, first : first + n] = rows · matrixᵀ, on the caller's thread.

    matrix f32 [n, n_cols], WIDE of its rows at best a number of times; out f32 [n_rows, at least first + n].
    """
    assert matrix.dtype == out.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert out.flags.c_contiguous
    assert matrix.shape[1] == rows.codes.shape[1]
    assert len(out) == rows.n_rows
    assert first + len(matrix) <= out.shape[1]
    cpu_products.multiplied(rows, matrix, out, first, native.host())
