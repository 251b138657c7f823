"""The codebooks of the IQ types: grids, their code maps and the neighbour lists that the searches walk.

Everything is derived from the grids that the gguf package carries (the order of entries is llama.cpp's)
and kept on disk, because deriving it imports gguf and compares every code with every entry.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cache import cache_dir, write_atomically


@dataclass(frozen=True, eq=False)
class Codebook:
    """One grid. A group of `dim` weights is a code: digit k at bits `bits * k`, digits 0, 1, 2 or 0 … 7.

    values      [3 or 8] f32         the value of each digit, as the decoder sees it
    digits      [n_entries, dim] u8  the grid; entries ascend by code
    index       [1 << bits * dim] i32  entry of a code, -1 where the code is not in the grid
    start       [(1 << bits * dim) + 1] i32  a code's neighbours are neighbours[start[code]:start[code + 1]]
    neighbours  [total] u16          entries, nearest first, equally near ones by index; empty on the grid
    """

    bits: int
    values: np.ndarray
    digits: np.ndarray
    index: np.ndarray
    start: np.ndarray
    neighbours: np.ndarray

    @property
    def dim(self) -> int:
        return self.digits.shape[1]


# bits of a digit, and how many distances count as near (ggml-quants.c: iq2xs_init_impl, iq3xs_init_impl)
_BOOKS = {
    "IQ2_XXS": (2, 2),
    "IQ2_XS": (2, 2),
    "IQ2_S": (2, 1),
    "IQ1_S": (2, 3),
    "IQ3_XXS": (3, 2),
    "IQ3_S": (3, 3),
}
_ARRAYS = ("values", "digits", "index", "start", "neighbours")


@functools.cache
def codebook(name: str) -> Codebook:
    """The codebook of an IQ1, IQ2 or IQ3 type (IQ1_M shares IQ1_S's), from the disk cache when it is there.

    Raises KeyError for other types.
    """
    if name == "IQ1_M":
        return codebook("IQ1_S")
    bits, _ = _BOOKS[name]
    path = cache_dir("codebooks") / f"{name}-{_version()}.npz"
    try:
        with np.load(path) as stored:
            return Codebook(bits, *(_frozen(stored[field]) for field in _ARRAYS))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        book = derive(name)
    _store(path, book)
    return book


@functools.cache
def _version() -> str:
    """Changes whenever the stored arrays may: the package they come from and the code that derives them."""
    from importlib.metadata import version  # loads what reads mail

    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return f"{version('gguf')}-{source}"


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _store(path: Path, book: Codebook) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{field: getattr(book, field) for field in _ARRAYS})
    try:
        write_atomically(path, buffer.getvalue())
    except OSError:
        return  # a home that cannot be written costs a fraction of a second each time, nothing else


def derive(name: str) -> Codebook:
    """Build a codebook from gguf's grid (ggml-quants.c: iq2xs_init_impl, iq3xs_init_impl)."""
    from gguf import quants

    bits, n_shells = _BOOKS[name]
    source = getattr(quants, name)
    source.init_grid()
    values = np.array(source.grid_map, np.float32)
    digits = np.searchsorted(values, source.grid.reshape(source.grid_shape)).astype(np.uint8)
    dim = digits.shape[1]
    n_codes = 1 << bits * dim

    index = np.full(n_codes, -1, np.int32)
    index[_codes(digits, bits)] = np.arange(len(digits))

    every = np.stack(np.meshgrid(*[np.arange(len(values))] * dim, indexing="ij"), -1).reshape(-1, dim)
    off_grid = every[index[_codes(every, bits)] < 0]
    off_grid = off_grid[np.argsort(_codes(off_grid, bits))]
    counts, neighbours = _nearest(off_grid, digits, n_shells)
    start = np.zeros(n_codes + 1, np.int32)
    start[_codes(off_grid, bits) + 1] = counts
    np.cumsum(start, out=start)
    arrays = (values, digits, index, start, neighbours)
    return Codebook(bits, *(_frozen(array) for array in arrays))


def _codes(digits: np.ndarray, bits: int) -> np.ndarray:
    return (digits.astype(np.int64) << bits * np.arange(digits.shape[1])).sum(1)


def _nearest(points: np.ndarray, grid: np.ndarray, n_shells: int) -> tuple[np.ndarray, np.ndarray]:
    """How many grid entries lie at each point's `n_shells` smallest distances, and those entries in order."""
    a = points.astype(np.float32)
    b = grid.astype(np.float32)
    # a digit stands at 2 digit + 1, so the true squared distance is four times this small exact integer
    distance = ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)).astype(np.int16)
    shell = distance.min(1)
    for _ in range(n_shells - 1):
        further = distance > shell[:, None]
        shell = np.min(distance, axis=1, where=further, initial=np.iinfo(np.int16).max)
    point, entry = np.nonzero(distance <= shell[:, None])
    order = np.lexsort((entry, distance[point, entry], point))
    return np.bincount(point, minlength=len(points)), entry[order].astype(np.uint16)
