"""One GGUF tensor as a choice from Hugging Face tensors: what a rule comes to once shapes are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quantmill.gguf_io.convert.rules import Index, Values

Shape = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """sources: one tensor, or one per matrix (experts in order). source_matrix: (rows, columns) of one source
    matrix (a vector is a matrix of one column). shape: of the result, Hugging Face dimension order. Of every
    source matrix `rows` and `columns` are taken (None: all); then it is transposed if asked, and `values` change.
    vector: the source is one, whatever the shape of the result. factors: what the rows of a source matrix are
    multiplied with, one after the other. padding: rows of zeros behind those of the only source matrix. spread: in
    the GGUF each row is a matrix of its own (`stored_shape`), here still a row. indices: not 0 where the values are
    whole numbers below it. joined: in the GGUF the matrices are one, of all rows. product: the sources are vectors
    whose product is the tensor.
    """

    sources: tuple[str, ...]
    source_matrix: tuple[int, int]
    shape: Shape
    rows: Index | None = None
    columns: Index | None = None
    transpose: bool = False
    values: Values | None = None
    vector: bool = False
    factors: tuple[float | np.ndarray, ...] = ()
    padding: int = 0
    spread: bool = False
    indices: int = 0
    joined: bool = False
    product: bool = False

    @property
    def stored_shape(self) -> Shape:
        if self.joined:
            return (self.shape[0] * self.shape[1], self.shape[2])
        return (*self.shape[:-1], 1, self.shape[-1]) if self.spread else self.shape

    @property
    def matrices(self) -> int:
        return int(np.prod(self.shape[:-2], dtype=np.int64)) if len(self.shape) > 2 else 1

    @property
    def plain(self) -> bool:
        """True when the values are those of the source in the source's order."""
        changed = self.transpose or self.values or self.factors or self.padding
        return self.rows is None and self.columns is None and not changed

    @property
    def in_whole_rows(self) -> bool:
        """Whether each row is one of a source, as it is."""
        return not (self.transpose or self.factors or self.padding or self.columns is not None)

    def take(self, matrix: Any) -> Any:
        """[rows, columns] of one source matrix → the matrix of the GGUF tensor."""
        taken = self.multiplied(matrix)
        taken = taken if self.rows is None else taken[self.rows]
        taken = taken if self.columns is None else taken[:, self.columns]
        taken = taken.T if self.transpose else taken
        if self.padding:
            taken = _padded(taken, self.padding)
        return self.values.there(taken) if self.values else taken

    def multiplied(self, matrix: Any, rows: Index | slice = slice(None)) -> Any:
        """These rows of a source matrix, each rounded after each factor."""
        for factor in self.factors:
            matrix = matrix * (factor[rows, None] if isinstance(factor, np.ndarray) else np.float32(factor))
        return matrix

    def put(self, matrix: Any, values: Any) -> None:
        """The reverse of `take`, into the part of the source matrix this view covers."""
        assert not self.factors, "a model that runs has its factors in its matrices"
        assert not self.product, "a model that runs has no products of two tensors"
        values = values[: -self.padding] if self.padding else values
        values = self.values.back(values) if self.values else values
        values = values.T if self.transpose else values
        rows = slice(None) if self.rows is None else self.rows
        columns = slice(None) if self.columns is None else self.columns
        matrix[rows, columns] = values


def _padded(matrix: Any, padding: int) -> Any:
    """With so many rows of zeros behind it."""
    if isinstance(matrix, np.ndarray):
        return np.concatenate((matrix, np.zeros((padding, matrix.shape[1]), matrix.dtype)))
    import torch

    return torch.nn.functional.pad(matrix, (0, 0, 0, padding))


def chosen(index: Index | None, n: int) -> int:
    """How many of n rows an index takes."""
    if index is None:
        return n
    return len(range(*index.indices(n))) if isinstance(index, slice) else len(index)
