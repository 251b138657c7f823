"""A source of tensors seen with some left out, renamed, cut to a part of their matrices, or replaced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantmill.gguf_io.errors import GGUFError, quoted
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.tensors import TensorSource, TensorSpec
from quantmill.gguf_io.types import GGML_TYPES

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of a tensor, u8 [n_rows, row_bytes], and their type."""

    type: str
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Edits:
    """names: name in the source → name to be seen; a tensor that is not named keeps its name, None leaves it out.
    kept: name in the source → the parts that stay along the outermost dimension (matrices of a stack, rows of a matrix,
    values of a vector), ascending. replaced: name in the source → what stands for it, cut already.
    """

    names: Mapping[str, str | None]
    kept: Mapping[str, tuple[int, ...]]
    replaced: Mapping[str, Stored]


class EditedSource:
    """A TensorSource over another one. Only rows that are read are touched; blocks are copied as they are."""

    def __init__(self, source: TensorSource, metadata: Metadata, edits: Edits) -> None:
        """Raises GGUFError for an edit of a tensor that is not there."""
        self._source, self._metadata, self._edits = source, metadata, edits
        self._old = {spec.name: spec for spec in source.specs()}
        for name in (*edits.names, *edits.kept, *edits.replaced):
            if name not in self._old:
                raise GGUFError(f"{source.paths[0]}: there is no tensor {quoted(name)} to be changed")
        self._specs: dict[str, tuple[TensorSpec, str]] = {}
        for name, spec in self._old.items():
            new = edits.names.get(name, name)
            if new is not None:
                self._specs[new] = (self._seen(spec, new), name)

    def _seen(self, spec: TensorSpec, name: str) -> TensorSpec:
        kept, stored = self._edits.kept.get(spec.name), self._edits.replaced.get(spec.name)
        shape = spec.shape if kept is None else (*spec.shape[:-1], len(kept))
        if stored is None:
            return replace(spec, name=name, shape=shape)
        new = replace(spec, name=name, shape=shape, type=stored.type, original=False)
        assert stored.rows.shape == (new.n_rows, new.row_bytes), name
        return new

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._source.paths

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._source.warnings

    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec, _ in self._specs.values())

    def read(self, name: str, first_row: int = 0, n_rows: int | None = None) -> np.ndarray:
        spec, old = self._found(name)
        n_rows = spec.wanted_rows(first_row, n_rows)
        stored = self._edits.replaced.get(old)
        if stored is not None:
            return stored.rows[first_row : first_row + n_rows]
        if old not in self._edits.kept:
            return self._source.read(old, first_row, n_rows)
        if len(spec.shape) == 1:
            return self._values(self._source.read(old), old)
        parts = [self._source.read(old, *rows) for rows in self._rows(spec, old, first_row, n_rows)]
        return _joined(parts, spec.row_bytes)

    def fetch(self, name: str, first_row: int = 0, n_rows: int | None = None) -> tuple[np.ndarray, str]:
        spec, old = self._found(name)
        n_rows = spec.wanted_rows(first_row, n_rows)
        if old in self._edits.replaced:
            return self.read(name, first_row, n_rows), spec.type
        if old not in self._edits.kept:
            return self._source.fetch(old, first_row, n_rows)
        if len(spec.shape) == 1:
            return self.read(name), spec.type
        found = [self._source.fetch(old, *rows) for rows in self._rows(spec, old, first_row, n_rows)]
        if not found:
            return self.read(name, first_row, n_rows), spec.type
        return _joined([rows for rows, _ in found], found[0][0].shape[-1]), found[0][1]

    def release(self, name: str, first_row: int = 0, n_rows: int | None = None) -> None:
        spec, old = self._found(name)
        n_rows = spec.wanted_rows(first_row, n_rows)
        if old in self._edits.kept and len(spec.shape) > 1:
            for rows in self._rows(spec, old, first_row, n_rows):
                self._source.release(old, *rows)
        elif old not in self._edits.kept and old not in self._edits.replaced:
            self._source.release(old, first_row, n_rows)

    def close(self) -> None:
        self._source.close()

    def _found(self, name: str) -> tuple[TensorSpec, str]:
        found = self._specs.get(name)
        if found is None:
            raise GGUFError(f"{self.paths[0]}: there is no tensor {quoted(name)}")
        return found

    def _values(self, row: np.ndarray, old: str) -> np.ndarray:
        """The kept values of a vector, u8 [1, row_bytes]."""
        size = GGML_TYPES[self._old[old].type].bytes  # vectors of experts are never in blocks
        return row.reshape(-1, size)[list(self._edits.kept[old])].reshape(1, -1)

    def _rows(self, spec: TensorSpec, old: str, first: int, n: int) -> Iterator[tuple[int, int]]:
        """(first row, number) in the source, one run of rows after the other."""
        each = math.prod(spec.shape[1:-1])  # rows of one part
        kept, last = self._edits.kept[old], first + n
        while first < last:
            part, inside = divmod(first, each)
            more = 1  # parts that follow one another in the source as well
            while part + more < len(kept) and kept[part + more] == kept[part] + more:
                more += 1
            count = min(last, (part + more) * each) - first
            yield kept[part] * each + inside, count
            first += count


def _joined(parts: list[np.ndarray], row_bytes: int) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    import numpy as np  # to see what changes takes none of it

    return np.concatenate(parts) if parts else np.empty((0, row_bytes), np.uint8)
