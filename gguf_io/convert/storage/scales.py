"""Scales of a matrix: one for each block of rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.numbers import to_float32
from quantmill.gguf_io.convert.storage.reader import Shape, matrix_shape
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.safetensors import StoredTensor

SCALE_TYPES = ("F64", "F32", "F16", "BF16", "F8_E8M0")
Block = tuple[int, int]


@dataclass(frozen=True)
class Scales:
    """stored: one number for each block of `block` (rows, columns) of each matrix of `shape`. Blocks at the edges may
    be cut off. type: what the numbers are, where their dtype does not say it (exponents in U8)."""

    stored: StoredTensor
    shape: Shape
    block: Block
    type: str

    @property
    def per_matrix(self) -> Block:
        """How many there are of one matrix, down and across."""
        rows, columns = self.shape[-2:]
        return -(-rows // self.block[0]), -(-columns // self.block[1])

    def of_rows(self, rows: Index) -> np.ndarray:
        """f32 [n_rows, blocks across]."""
        n_rows, (down, across) = self.shape[-2], self.per_matrix
        index = np.arange(matrix_shape(self.shape)[0])[rows]
        places = index // n_rows * down + index % n_rows // self.block[0]
        return to_float32(self.stored.array().reshape(-1, across)[places], self.type)

    @cached_property
    def of_column(self) -> np.ndarray:
        """Which of the blocks across a column lies in."""
        return np.arange(self.shape[-1]) // self.block[1]

    def spread(self, rows: Index, columns: Index) -> np.ndarray:
        """f32 [n_rows, n_columns], one for each value."""
        return np.take(self.of_rows(rows), self.of_column[columns], axis=1)


def require_type(scales: StoredTensor, types: Sequence[str]) -> None:
    """Raises GGUFError for scales that are stored as something else."""
    if scales.dtype not in types:
        raise GGUFError(
            f"{scales.path}: {scales.name} has dtype {scales.dtype}; scales must be {', '.join(types)}"
        )


def scales_of(
    codes: StoredTensor, shape: Shape, scales: StoredTensor, blocks: Sequence[Block | None], type: str = ""
) -> Scales:
    """The scales of codes that stand for a matrix (or a stack of them) of `shape`, by the first of `blocks` that fits.

    None stands for a scale for each row, for each matrix, or for all. `type`: as in Scales, when it is not the dtype.
    Raises GGUFError when none of them fits, or when they are stored as something else.
    """
    kind = type or scales.dtype
    if type:
        require_type(scales, ("U8", type))
    else:
        require_type(scales, SCALE_TYPES)
    n_rows, n_columns = shape[-2:]
    n_matrices = matrix_shape(shape)[0] // max(n_rows, 1)
    count = matrix_shape(scales.shape)[0] * matrix_shape(scales.shape)[1]
    for block in blocks:
        if block is None:
            whole = {n_matrices * n_rows: (1, n_columns), n_matrices: (n_rows, n_columns)}
            if count == 1 and len(shape) > 2:
                return Scales(
                    scales, (1, n_matrices * n_rows, n_columns), (n_matrices * n_rows, n_columns), kind
                )
            # A row's scales may have no dimension of columns; as many in one row are not the rows'.
            if count in whole and (len(scales.shape) < 2 or scales.shape[-1] == 1):
                return Scales(scales, shape, whole[count], kind)
            continue
        wanted = (-(-n_rows // block[0]), -(-n_columns // block[1]))
        found = tuple(n for n in scales.shape if n != 1)
        if found == tuple(n for n in (*shape[:-2], *wanted) if n != 1):
            return Scales(scales, shape, block, kind)
    each = " or ".join(f"block of {list(block)}" if block else "row, or one for all" for block in blocks)
    raise GGUFError(
        f"{scales.path}: {scales.name} {list(scales.shape)} does not fit {codes.name} {list(shape)} with a scale for "
        f"each {each}; config.json or the checkpoint is wrong"
    )
