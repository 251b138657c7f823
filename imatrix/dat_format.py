"""The legacy .dat format: means times a number of chunks, one count per tensor.

i32 n_entries; each entry: i32 length, name, i32 ncall, i32 nval, f32[nval]; then, optional, i32 last chunk,
i32 length, dataset. The values are Σx² / count · ncall with ncall = ceil(largest count / chunk size).
Source: tools/imatrix/imatrix.cpp: save_imatrix_legacy, common/imatrix-loader.cpp.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quantmill.gguf_io.filesystem import open_regular
from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix, checked_entry

# No tensor name is longer than 63 bytes in ggml; a dataset is a path.
MAX_TEXT = 1 << 16
MAX_INT32 = 2**31 - 1


class _Cursor:
    """Walks over the bytes of a file that may lie about every length."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.left:
            raise ImatrixError(
                f"{self.path}: not an importance matrix, or cut short: {what} needs {n_bytes} bytes "
                f"at {self.position}, {self.left} are left"
            )
        self.position += n_bytes
        return self.data[self.position - n_bytes : self.position]

    def int32(self, what: str, low: int, high: int) -> int:
        (value,) = struct.unpack("<i", self.take(4, what))
        if not low <= value <= high:
            raise ImatrixError(
                f"{self.path}: not an importance matrix: {what} at byte {self.position - 4} is {value}, "
                f"expected {low} to {high}"
            )
        return value

    def text(self, what: str) -> str:
        raw = self.take(self.int32(f"length of {what}", 0, MAX_TEXT), what)
        return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def read_dat(path: Path, chunk_size: int) -> ImportanceMatrix:
    """Read a legacy file; sums and counts are multiplied back by `chunk_size` (exact for powers of two).

    An entry of zero calls, which llama-quantize reads as plain values, counts as one call.
    Raises ImatrixError for anything that is not a complete file, OSError when it cannot be read.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ImatrixError(f"{path}: not an importance matrix: the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(path, data)
            n_entries = cursor.int32("number of entries", 1, len(data) // 16 + 1)
            entries: dict[str, Entry] = {}
            for _ in range(n_entries):
                name, entry = _read_entry(cursor, chunk_size)
                if name in entries:
                    raise ImatrixError(f"{path}: {name} appears twice; the file is damaged")
                entries[name] = entry
            chunk_count, dataset = _read_trailer(cursor)
    return ImportanceMatrix(entries, (dataset,) if dataset else (), chunk_count, chunk_size, legacy=True)


def _read_entry(cursor: _Cursor, chunk_size: int) -> tuple[str, Entry]:
    name = cursor.text("a tensor name")
    n_calls = max(1, cursor.int32(f"number of calls of {name!r}", 0, MAX_INT32))
    n_values = cursor.int32(f"number of values of {name!r}", 1, MAX_INT32)
    values = np.frombuffer(cursor.take(4 * n_values, f"data of {name!r}"), "<f4")
    with np.errstate(over="ignore", invalid="ignore"):  # checked_entry names what overflows
        sums = values * np.float32(chunk_size)
    return name, checked_entry(name, sums[None, :], np.array([n_calls * chunk_size], np.int64))


def _read_trailer(cursor: _Cursor) -> tuple[int, str]:
    if not cursor.left:
        return 0, ""
    chunk_count = cursor.int32("the last chunk", 0, MAX_INT32)
    dataset = cursor.text("the dataset") if cursor.left else ""
    if cursor.left:
        raise ImatrixError(f"{cursor.path}: {cursor.left} bytes follow the end of the importance matrix")
    return chunk_count, dataset


def encode_dat(matrix: ImportanceMatrix) -> Iterator[bytes]:
    """The pieces of a legacy file. Per-expert counts, Σx, and all datasets but the last are lost.

    Experts that saw nothing get 1.0; entries that saw nothing at all are left out, as llama.cpp does.
    """
    stored = {name: entry for name, entry in matrix.entries.items() if entry.counts.max(initial=0) > 0}
    yield struct.pack("<i", len(stored))
    for name, entry in stored.items():
        raw = name.encode("utf-8", "surrogateescape")
        n_calls = -(-int(entry.counts.max()) // matrix.chunk_size)
        yield struct.pack(f"<i{len(raw)}sii", len(raw), raw, n_calls, entry.n_values)
        yield (entry.means() * np.float32(n_calls)).astype("<f4").tobytes()
    dataset = matrix.datasets[-1].encode("utf-8", "surrogateescape") if matrix.datasets else b""
    yield struct.pack(f"<ii{len(dataset)}s", matrix.chunk_count, len(dataset), dataset)
