"""What goes with experts that are cut: tables that name them, importance that was collected for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantmill.gguf_io import TensorSource
from quantmill.imatrix.matrix import Entry, ImportanceMatrix
from quantmill.recipe.prune_experts import cut_tensors, find_experts


def remapped(table: np.ndarray, kept: tuple[int, ...], n_experts: int) -> np.ndarray:
    """Which experts each token goes to, u8 rows of i32 [n_tokens, n_used] → the same in numbers of those that stay.

    In the place of one that is gone comes the next that stays and the token does not have yet.
    """
    old = table.view("<i4").copy()
    new = np.full(n_experts, -1, np.int32)
    new[list(kept)] = np.arange(len(kept))
    out = new[old]
    following = np.searchsorted(kept, old)  # the place among those that stay where a missing one would be
    for row, column in np.argwhere(out < 0):
        choice = int(following[row, column]) % len(kept)
        while choice in out[row]:
            choice = (choice + 1) % len(kept)
        out[row, column] = choice
    return np.ascontiguousarray(out, "<i4").view(np.uint8)


def cut_importance(
    matrix: ImportanceMatrix, staying: Mapping[int, tuple[int, ...]], source: TensorSource
) -> ImportanceMatrix:
    """The rows of the experts that stay in each layer, where an entry has one for each that was there."""
    specs = {spec.name: spec for spec in source.specs()}
    experts = find_experts(source.metadata, specs.values())
    kept = cut_tensors(specs.values(), experts, staying)
    entries = dict(matrix.entries)
    for name, found in matrix.entries.items():
        spec = specs.get(name)
        if (
            spec is not None
            and name in kept
            and found.n_values == spec.n_cols * experts.n
            and len(spec.shape) > 2
        ):
            entries[name] = _rows(found, list(kept[name]), experts.n)
    return ImportanceMatrix(entries, matrix.datasets, matrix.chunk_count, matrix.chunk_size, matrix.legacy)


def _rows(entry: Entry, kept: list[int], n_experts: int) -> Entry:
    counts = entry.counts if entry.counts.size == 1 else entry.counts.reshape(n_experts, -1)[kept].reshape(-1)
    in_sum = None if entry.in_sum is None else entry.in_sum.reshape(n_experts, -1)[kept]
    return Entry(entry.in_sum2.reshape(n_experts, -1)[kept], counts, in_sum)
