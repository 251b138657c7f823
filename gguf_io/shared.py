"""Outputs that other processes write into, each at its places, through a file system that all of them see.

The process that opened the output (gguf_io.sink) names it, checks that it is complete and gives it its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantmill.gguf_io.errors import GGUFError, shown
from quantmill.gguf_io.filesystem import NO_SPACE, sync


@dataclass(frozen=True)
class SharedFile:
    """A file that is written by several. final: its name for people; header: sha256 of its first header_bytes."""

    path: Path
    final: Path
    n_bytes: int
    header_bytes: int
    header: str


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: number of the file, first byte there, bytes of a row and how many rows."""

    file: int
    offset: int
    row_bytes: int
    n_rows: int


@dataclass(frozen=True)
class Places:
    """All that another process needs to write into an output."""

    files: tuple[SharedFile, ...]
    tensors: Mapping[str, Place]


def header_hash(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()


class SharedRows:
    """Writes rows into an output that another process has opened. Raises GGUFError where that is not seen from here."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._fds: list[int] = []
        try:
            for file in places.files:
                self._fds.append(_opened(file, os.O_RDWR))
        except BaseException:
            self.close()
            raise

    def write_rows(self, name: str, first_row: int, data: Any) -> None:
        """Rows of a tensor, from `first_row` on; the same rows may be written twice. Raises GGUFError."""
        place = self._places.tensors[name]
        part = memoryview(data).cast("B")
        if part.nbytes % place.row_bytes or first_row + part.nbytes // place.row_bytes > place.n_rows:
            raise GGUFError(f"{shown(name)}: {part.nbytes} bytes from row {first_row} on are not rows of it")
        at, end = place.offset + first_row * place.row_bytes, self._places.files[place.file].n_bytes
        try:
            while part:
                written = os.pwrite(self._fds[place.file], part, at)
                at, part = at + written, part[written:]
        except OSError as error:
            raise _failed(self._places.files[place.file], error, f" at byte {at} of {end}") from error

    def sync(self) -> None:
        """Wait until all of it is on the disk. Raises GGUFError."""
        for file, fd in zip(self._places.files, self._fds, strict=True):
            try:
                sync(fd)
            except OSError as error:
                raise _failed(file, error, "") from error

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def require_seen(places: Places) -> None:
    """Raises GGUFError where an output that another process has opened is not seen from here."""
    for file in places.files:
        os.close(_opened(file, os.O_RDONLY))


def _opened(file: SharedFile, flags: int) -> int:
    try:
        fd = os.open(file.path, flags)
    except OSError as error:
        raise _unseen(file, error.strerror or "no reason given") from error
    if os.fstat(fd).st_size != file.n_bytes or header_hash(os.pread(fd, file.header_bytes, 0)) != file.header:
        os.close(fd)
        raise _unseen(file, "another file is there")
    return fd


def _unseen(file: SharedFile, why: str) -> GGUFError:
    return GGUFError(
        f"{file.final}: the output is not seen here ({why}: {file.path}); write it into a file system that all share"
    )


def _failed(file: SharedFile, error: OSError, where: str) -> GGUFError:
    if error.errno in NO_SPACE:
        return GGUFError(f"{file.final}: the disk is full{where}; free space or choose another directory")
    return GGUFError(f"{file.final}: cannot be written{where}: {error.strerror}")
