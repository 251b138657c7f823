"""Read GGUF files, single or split, through memory maps: tensors are views, nothing is copied."""

from __future__ import annotations

import mmap
import os
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING

from quantmill.gguf_io.errors import GGUFError, quoted
from quantmill.gguf_io.filesystem import open_regular
from quantmill.gguf_io.header import parse_header
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.passing import drop, passes_by
from quantmill.gguf_io.splits import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS_COUNT, split_paths
from quantmill.gguf_io.tensors import TensorSource, TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = ["GGUFSource", "TensorSource", "TensorSpec", "open_source"]


def open_source(path: str | os.PathLike[str], later: str = "with") -> TensorSource:
    """Open a model: a GGUF file (of a split model its first file) or a Hugging Face directory.

    later: which layers of a directory, as open_checkpoint has it; a GGUF has those that it has.
    Raises GGUFError when it is not sound, OSError when it cannot be read.
    """
    if os.path.isdir(path):
        from quantmill.gguf_io.convert import open_checkpoint  # only a checkpoint needs the converter

        return open_checkpoint(path, later=later)
    if later != "with":
        raise GGUFError(
            f"{path}: is a GGUF; layers that predict further tokens are chosen of a model's directory"
        )
    return GGUFSource(path)


class _MappedFile:
    """One GGUF file: its map, its keys and its tensors."""

    def __init__(self, path: Path, shard: int) -> None:
        self.path = path
        with open_regular(path) as file:
            if not os.fstat(file.fileno()).st_size:
                raise GGUFError(f"{path}: not a GGUF file: it is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._fd = os.dup(file.fileno()) if passes_by(file.fileno()) else -1
        if self._fd >= 0 and hasattr(mmap, "MADV_SEQUENTIAL"):
            # Or a page that is missing is read with as many before it as after: with those just given back.
            self._map.madvise(mmap.MADV_SEQUENTIAL)
        self.header = parse_header(path, memoryview(self._map), shard)

    def bytes(self, start: int, size: int) -> np.ndarray:
        """uint8 [size], a read-only view."""
        import numpy as np  # to look at the header takes none of it

        return np.frombuffer(self._map, np.uint8, size, start)

    def release(self, start: int, size: int) -> None:
        if not hasattr(self._map, "madvise"):  # Windows
            return
        # Whole pages, outwards: a neighbour's part of a page comes back from the file when it is needed.
        first_page = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, first_page, start + size - first_page)
        if self._fd >= 0:
            drop(self._fd, first_page, start + size - first_page)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)


class GGUFSource:
    """A GGUF model, version 2 or 3, single or split. metadata: that of the first file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        first = _MappedFile(Path(path), 0)
        self._files = [first]
        self._paths = split_paths(first.path, first.header.metadata)
        for other in self._paths[1:]:
            self._files.append(_MappedFile(other, len(self._files)))
        self._metadata = first.header.metadata
        self._specs: dict[str, TensorSpec] = {}
        for file in self._files:
            for spec in file.header.specs:
                if spec.name in self._specs:
                    raise GGUFError(f"{file.path}: the tensor {quoted(spec.name)} is in an earlier shard too")
                self._specs[spec.name] = spec
        self._check_split()

    def _check_split(self) -> None:
        if len(self._files) == 1:
            return
        count = len(self._files)
        for number, file in enumerate(self._files):
            found = file.header.metadata.value(SPLIT_NO), file.header.metadata.value(SPLIT_COUNT)
            if found != (number, count):
                raise GGUFError(
                    f"{file.path}: split.no, split.count are {reprlib.repr(found)}, expected {(number, count)}; "
                    "the shards are not of one model: fetch them again"
                )
        promised = self._metadata.value(SPLIT_TENSORS_COUNT)
        if promised is not None and promised != len(self._specs):
            raise GGUFError(
                f"{self._paths[0]}: {SPLIT_TENSORS_COUNT} is {promised}, the {count} shards hold "
                f"{len(self._specs)} tensors; fetch them again"
            )

    @property
    def paths(self) -> tuple[Path, ...]:
        return self._paths

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def specs(self) -> tuple[TensorSpec, ...]:
        """All tensors, shard after shard, in the order of their entries."""
        return tuple(self._specs.values())

    def read(self, name: str, first_row: int = 0, n_rows: int | None = None) -> np.ndarray:
        """uint8 [n_rows, row_bytes], a read-only view. Raises GGUFError (see TensorSource.read)."""
        spec, start, size = self._range(name, first_row, n_rows)
        return self._files[spec.shard].bytes(start, size).reshape(-1, spec.row_bytes)

    def fetch(self, name: str, first_row: int = 0, n_rows: int | None = None) -> tuple[np.ndarray, str]:
        """The same, and its type."""
        rows = self.read(name, first_row, n_rows)
        return rows, self._specs[name].type

    def release(self, name: str, first_row: int = 0, n_rows: int | None = None) -> None:
        """Drop the pages of these rows from this process (see TensorSource.release)."""
        spec, start, size = self._range(name, first_row, n_rows)
        if size:
            self._files[spec.shard].release(start, size)

    def _range(self, name: str, first_row: int, n_rows: int | None) -> tuple[TensorSpec, int, int]:
        """The tensor, its first wanted byte and how many."""
        spec = self._specs.get(name)
        if spec is None:
            raise GGUFError(f"{self._paths[0]}: there is no tensor {quoted(name)}")
        n_rows = spec.wanted_rows(first_row, n_rows)
        return spec, spec.offset + first_row * spec.row_bytes, n_rows * spec.row_bytes

    def close(self) -> None:
        """Forget the files; the maps go with the last view."""
        self._files = []
        self._specs = {}

    def __enter__(self) -> GGUFSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
