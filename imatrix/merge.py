"""Add importance matrices up, as llama-imatrix does (tools/imatrix/imatrix.cpp: load_imatrix)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix


def merge(matrices: Sequence[ImportanceMatrix], chunk_size: int | None = None) -> ImportanceMatrix:
    """Sums add in float32 in the given order, counts add, datasets follow one another.

    A single count stands for all experts of the entries after it. The number of chunks is the largest count
    divided by chunk_size (default: that of the first file that is not legacy). Σx stays where all have it.
    Raises ImatrixError when two entries of one name differ in size.
    """
    if not matrices:
        raise ImatrixError("nothing to merge: give at least one importance matrix")
    if chunk_size is None:
        chunk_size = next((m.chunk_size for m in matrices if not m.legacy), matrices[0].chunk_size)
    if chunk_size < 1:
        raise ImatrixError(f"chunk size {chunk_size}: expected at least one token")
    merged: dict[str, Entry] = {}
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            # starting from zero turns -0 into 0, as llama.cpp does
            merged[name] = _added(name, merged[name], entry) if name in merged else _from_zero(entry)
    largest = max((int(entry.counts.max()) for entry in merged.values()), default=0)
    return ImportanceMatrix(
        merged,
        tuple(dataset for matrix in matrices for dataset in matrix.datasets),
        largest // chunk_size,
        chunk_size,
        legacy=all(matrix.legacy for matrix in matrices),
    )


def strangers(matrices: Sequence[ImportanceMatrix]) -> list[int]:
    """Which of several matrices have no tensor in common with any other: most likely of another model."""
    names = [set(matrix.entries) for matrix in matrices]
    if len(names) < 2:
        return []
    return [
        i for i, own in enumerate(names) if not any(own & other for j, other in enumerate(names) if i != j)
    ]


def _from_zero(entry: Entry) -> Entry:
    in_sum = None if entry.in_sum is None else entry.in_sum + np.float32(0)
    return Entry(entry.in_sum2 + np.float32(0), entry.counts.copy(), in_sum)


def _added(name: str, total: Entry, entry: Entry) -> Entry:
    if total.n_values != entry.n_values:
        raise ImatrixError(
            f"{name}: {total.n_values} values in one file, {entry.n_values} in another; "
            "importance matrices of different models cannot be merged"
        )
    n_mat = len(total.counts)
    if len(entry.counts) not in (1, n_mat) and n_mat != 1:
        raise ImatrixError(f"{name}: {n_mat} counts in one file, {len(entry.counts)} in another")
    counts = total.counts + entry.counts
    shape = (len(counts), total.n_values // len(counts))
    with np.errstate(over="ignore"):
        in_sum2 = total.in_sum2.reshape(shape) + entry.in_sum2.reshape(shape)
    if not np.isfinite(in_sum2).all():
        raise ImatrixError(f"{name}: the sums overflow float32; merge fewer files")
    in_sum = None
    if total.in_sum is not None and entry.in_sum is not None:
        in_sum = total.in_sum.reshape(shape) + entry.in_sum.reshape(shape)
    return Entry(in_sum2, counts, in_sum)
