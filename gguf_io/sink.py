"""Write GGUF version 3 in one pass: all offsets known before the data, no file before it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from quantmill.gguf_io.errors import GGUFError, shown
from quantmill.gguf_io.kinds import MODEL, Kind
from quantmill.gguf_io.layout import FileLayout, OutputTensor, lay_out
from quantmill.gguf_io.metadata import Metadata
from quantmill.gguf_io.outputs import check_output, require_space
from quantmill.gguf_io.partial import PartialFile, sync_directory
from quantmill.gguf_io.renaming import rename_all
from quantmill.gguf_io.tensors import TensorSpec

if TYPE_CHECKING:
    from quantmill.gguf_io.leftovers import Mark
    from quantmill.gguf_io.shared import Places

__all__ = ["FileLayout", "GGUFSink", "OutputTensor", "lay_out"]


class GGUFSink:
    """`with GGUFSink(path, metadata, tensors) as sink: sink.write(name, rows) …; sink.commit()`.

    Creating it checks everything that can be known: names, shapes and the output rule (gguf_io.outputs, with
    `inputs`, `kind` and `force`; `kept_bytes` lie beside the files until they are done; `keep`: rows that a killed run
    has left stay; `only`: of several files this one, from 0, for others write the rest; `patience`: seconds in which
    another run that writes them may end). Entering creates temporary files beside the final names; commit() renames
    them; leaving without commit, by an error or an interrupt, removes them. How tensors become files: lay_out.

    Raises GGUFError; a full disk while writing is one too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Metadata,
        tensors: Sequence[OutputTensor],
        *,
        keep_split: bool = False,
        split_max_bytes: int | None = None,
        inputs: Iterable[str | os.PathLike[str]] = (),
        kind: Kind = MODEL,
        force: bool = False,
        kept_bytes: int = 0,
        keep: bool = False,
        only: int | None = None,
        patience: float = 0.0,
    ) -> None:
        self._keep, self._patience = keep, patience
        self._layouts = lay_out(
            path, metadata, tensors, keep_split=keep_split, split_max_bytes=split_max_bytes
        )
        self._first = only or 0  # shard
        if only is not None:
            self._layouts = self._layouts[only : only + 1]
        read = list(inputs)
        self._outputs = [check_output(layout.path, kind, read, force=force) for layout in self._layouts]
        self._finals = [output.final for output in self._outputs]
        require_space(self._finals, self.file_bytes, kept_bytes)
        self._specs = {spec.name: spec for layout in self._layouts for spec in layout.tensors}
        self._written = dict.fromkeys(self._specs, 0)
        self._files: list[PartialFile] = []
        self._lock = Lock()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The final names."""
        return tuple(layout.path for layout in self._layouts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user shall read before the work: files that are replaced."""
        return tuple(line for output in self._outputs for line in output.warnings)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files together, keys and padding included."""
        return sum(layout.file_bytes for layout in self._layouts)

    @property
    def finals(self) -> tuple[Path, ...]:
        """The files themselves, links followed."""
        return tuple(self._finals)

    @property
    def was_kept(self) -> bool:
        """Whether it goes on with all of its files."""
        return bool(self._files) and all(file.was_kept for file in self._files)

    def specs(self) -> tuple[TensorSpec, ...]:
        """Where each tensor will lie."""
        return tuple(self._specs.values())

    def __enter__(self) -> GGUFSink:
        try:
            for final, layout in zip(self._finals, self._layouts, strict=True):
                self._files.append(PartialFile(final, layout.file_bytes, self._keep, self._patience))
                self._files[-1].write_at(0, memoryview(layout.header))
        except BaseException:
            self._discard()
            raise
        return self

    def begin_anew(self) -> None:
        """What was kept is not gone on with: nothing of it stays, between the tensors neither. Raises GGUFError."""
        for file, layout in zip(self._files, self._layouts, strict=True):
            file.clear()
            file.write_at(0, memoryview(layout.header))

    def write(self, name: str, data: Any) -> None:
        """Append rows to a tensor. data: any C-contiguous buffer (numpy uint8 [n_rows, row_bytes], bytes, …).

        Tensors may come in any order, also mixed and from several threads; the parts of one come in order.
        Raises GGUFError for an unknown tensor, part of a row, more rows than declared, or a failed write.
        """
        part = memoryview(data).cast("B")
        with self._lock:
            self._put(name, self._written.get(name, 0), part)

    def write_rows(self, name: str, first_row: int, data: Any) -> None:
        """The same at a place: rows from `first_row` on, each once, in any order."""
        part = memoryview(data).cast("B")
        with self._lock:
            self._put(name, first_row * self._spec(name).row_bytes, part)

    def places(self) -> Places:
        """For other processes, which write into the files themselves (gguf_io.shared)."""
        from quantmill.gguf_io.shared import Place, Places, SharedFile, header_hash  # of a cluster only

        files = tuple(
            SharedFile(
                file.path, final, layout.file_bytes, len(layout.header), header_hash(bytes(layout.header))
            )
            for file, final, layout in zip(self._files, self._finals, self._layouts, strict=True)
        )
        tensors = {
            name: Place(spec.shard - self._first, spec.offset, spec.row_bytes, spec.n_rows)
            for name, spec in self._specs.items()
        }
        return Places(files, tensors)

    def count_written(self, name: str, n_rows: int) -> None:
        """Rows that another process has written, each counted once."""
        with self._lock:
            self._written[name] += n_rows * self._spec(name).row_bytes

    def _spec(self, name: str) -> TensorSpec:
        if not self._files:
            raise GGUFError(f"{shown(name)}: the output is not open for writing")
        spec = self._specs.get(name)
        if spec is None:
            raise GGUFError(f"{shown(name)}: was not declared")
        return spec

    def _put(self, name: str, start: int, part: memoryview) -> None:
        spec = self._spec(name)
        if part.nbytes % spec.row_bytes:
            raise GGUFError(f"{shown(name)}: {part.nbytes} bytes are not whole rows of {spec.row_bytes}")
        done = max(start, self._written[name]) + part.nbytes
        if done > spec.n_bytes:
            raise GGUFError(f"{shown(name)}: {done} bytes written, {spec.n_bytes} declared")
        self._files[spec.shard - self._first].write_at(spec.offset + start, part)
        self._written[name] += part.nbytes

    def complete(self) -> None:
        """Flush to the disk, all outputs before one has its name. Raises GGUFError for a tensor that is incomplete."""
        for name, done in self._written.items():
            if done != self._specs[name].n_bytes:
                raise GGUFError(f"{shown(name)}: {done} bytes written, {self._specs[name].n_bytes} declared")
        for file in self._files:
            file.sync()

    def marks(self) -> tuple[Mark, ...]:
        """Of all files, complete but without their names yet."""
        from quantmill.gguf_io.leftovers import mark_of  # of a cluster only

        return tuple(mark_of(file.path) for file in self._files)

    def commit(self) -> None:
        """Complete, and give the files their names, all or none. Raises GGUFError as `complete` does."""
        commit_all([self])

    def __exit__(self, *exception: object) -> None:
        self._discard()

    def leave(self) -> None:
        """What was written stays beside the output, for a run with `keep`."""
        with self._lock:
            for file in self._files:
                file.forget()
            self._files = []

    def _discard(self) -> None:
        """Remove what was written, unless the model has been given its name: then it is complete."""
        with self._lock:  # a thread that still writes finishes its part first
            if self._files and not self._files[0].has_final_name:
                for file in self._files:
                    file.discard()
            self._files = []


def commit_all(sinks: Sequence[GGUFSink]) -> None:
    """Complete several outputs, and give all of their files their names, or none. Raises GGUFError."""
    for sink in sinks:
        sink.complete()
    # The first shard, the one that is opened, comes last: without it the others are no model yet.
    rename_all([file for sink in reversed(sinks) for file in reversed(sink._files)])
    for directory in dict.fromkeys(final.parent for sink in sinks for final in sink.finals):
        sync_directory(directory)
