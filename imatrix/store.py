"""Importance matrices in files: llama.cpp's GGUF format and the older .dat, told apart by what is inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from quantmill.gguf_io.filesystem import open_regular
from quantmill.gguf_io.partial import resolved, write_whole
from quantmill.imatrix.dat_format import encode_dat, read_dat
from quantmill.imatrix.gguf_format import read_gguf, write_gguf
from quantmill.imatrix.matrix import EMBEDDINGS, Entry, ImatrixError, ImportanceMatrix
from quantmill.imatrix.merge import merge

__all__ = ["EMBEDDINGS", "Entry", "Format", "ImatrixError", "ImportanceMatrix", "load", "merge", "save"]

Format = Literal["gguf", "dat"]
LEGACY_CHUNK_SIZE = 512


def load(path: str | os.PathLike[str], legacy_chunk_size: int = LEGACY_CHUNK_SIZE) -> ImportanceMatrix:
    """Read an importance matrix of either format, whatever the file is called.

    legacy_chunk_size: tokens a chunk of a .dat file stands for; the file does not say (llama-imatrix: -c).
    Raises ImatrixError or GGUFError for a file that is neither or is damaged, OSError when unreadable.
    """
    path = Path(path)
    with open_regular(path) as file:
        is_gguf = file.read(4) == b"GGUF"
    return read_gguf(path) if is_gguf else read_dat(path, legacy_chunk_size)


def format_of(path: Path) -> Format:
    """The format that a file of this name is written in."""
    return "dat" if path.suffix == ".dat" else "gguf"


def save(path: str | os.PathLike[str], matrix: ImportanceMatrix, format: Format | None = None) -> None:
    """Write `matrix` under `path`, all or nothing; format by the file's suffix when not given (.dat or GGUF).

    Raises GGUFError when the disk is full, OSError when not permitted; the old file then stays as it was.
    """
    path = Path(path)
    if (format or format_of(path)) == "gguf":
        write_gguf(path, matrix)
    else:
        write_whole(resolved(path), b"".join(encode_dat(matrix)))
