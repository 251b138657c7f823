"""Rows of a GGUF tensor, cut out of the tensors of a checkpoint as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from quantmill.gguf_io.convert.rules import Index
from quantmill.gguf_io.convert.storage.numbers import to_float32
from quantmill.gguf_io.convert.storage.reader import ALL, Reader
from quantmill.gguf_io.convert.view import View


def cut_rows(view: View, readers: Mapping[str, Reader], kind: str, first: int, end: int) -> np.ndarray:
    """Rows `first` to `end` of the tensor that `view` describes: numbers of `kind` (F32, F16, BF16 as bits, I32)
    [rows, columns], or its blocks, u8 [rows, row_bytes], where all of the sources have such."""
    if view.vector:  # made of matrices of one column
        vectors = [_vector(view, readers[source]) for source in view.sources]
        values = vectors[0] if len(vectors) == 1 else np.prod(vectors, axis=0, dtype=np.float32)
        return values.reshape(-1, view.shape[-1])[first:end]
    parts = list(_parts(view, readers, kind, first, end))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _vector(view: View, reader: Reader) -> np.ndarray:
    values = reader.values(ALL, ALL).reshape(-1, 1)
    values = to_float32(values, "BF16") if reader.plain == "BF16" else values
    return to_float32(view.take(values), "F32").ravel()


def _parts(
    view: View, readers: Mapping[str, Reader], kind: str, first: int, end: int
) -> Iterator[np.ndarray]:
    """The wanted rows, matrix after matrix."""
    assert view.values is None, "values of vectors only are changed"
    per_matrix = view.shape[-2]
    n_source_rows = view.source_matrix[0]
    for matrix in range(first // per_matrix, -(-end // per_matrix)):
        wanted = slice(max(first - matrix * per_matrix, 0), min(end - matrix * per_matrix, per_matrix))
        one_each = len(view.sources) > 1
        reader = readers[view.sources[matrix if one_each else 0]]
        rows = np.arange(n_source_rows) if view.rows is None else np.arange(n_source_rows)[view.rows]
        columns = np.arange(view.source_matrix[1])
        columns = columns if view.columns is None else columns[view.columns]
        if view.transpose:
            columns = columns[wanted]
        else:
            rows = rows[wanted]
        start = 0 if one_each else matrix * n_source_rows
        if kind in reader.forms:
            yield reader.blocks(_as_slice(rows + start), kind)
            continue
        values = reader.values(_as_slice(rows + start), _as_slice(columns))
        if view.indices:
            yield values.astype(np.int32)
            continue
        values = to_float32(values, reader.plain) if kind != reader.plain else values
        values = view.multiplied(values, _as_slice(rows)) if view.factors else values
        if view.padding and len(values) < wanted.stop - wanted.start:
            missing = (wanted.stop - wanted.start - len(values), values.shape[1])
            values = np.concatenate((values, np.zeros(missing, values.dtype)))
        yield values.T if view.transpose else values


def _as_slice(index: np.ndarray) -> Index:
    """A slice where the rows are evenly spaced: the map then gives a view, not a copy."""
    if len(index) < 2:
        return slice(int(index[0]), int(index[0]) + 1) if len(index) else slice(0, 0)
    step = int(index[1] - index[0])
    if step > 0 and bool((np.diff(index) == step).all()):
        return slice(int(index[0]), int(index[-1]) + 1, step)
    return index
