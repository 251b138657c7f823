"""A codebook's tables as the lane word `nearest` reads them (`qkernels/lanes/vocabulary.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from quantmill.qkernels.codebooks import codebook

# Neighbours in a vector: lists are filled up to whole runs of them.
RUN = 16


def codebook_tables(name: str) -> Mapping[str, Callable[[], np.ndarray]]:
    """Makers of "index", the entry of each code; "lists", where its neighbours are; "near", the neighbours' codes."""
    return {
        "index": lambda: codebook(name).index,
        "lists": lambda: _lists(name),
        "near": lambda: _near(name),
    }


def _runs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """For each code its number of neighbours, and how many runs they and what fills them up take."""
    count = np.diff(codebook(name).start)
    return count, -(-count // RUN)


def _lists(name: str) -> np.ndarray:
    count, runs = _runs(name)
    first = np.cumsum(runs) - runs
    return np.where(count > 0, first << 10 | count, 0).astype(np.int32)


def _near(name: str) -> np.ndarray:
    """The neighbours' codes, each list filled up to whole runs with its last."""
    book = codebook(name)
    count, runs = _runs(name)
    codes = (book.digits.astype(np.int32) << book.bits * np.arange(book.dim)).sum(1)
    listed = count > 0
    offset = np.arange(RUN * runs.sum()) - np.repeat(RUN * (np.cumsum(runs) - runs), RUN * runs)
    kept = np.minimum(offset, np.repeat(count - 1, RUN * runs))
    first = np.repeat(book.start[:-1][listed], RUN * runs[listed])
    return codes[book.neighbours[first + kept]].astype(np.int32)
