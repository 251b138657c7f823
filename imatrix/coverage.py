"""Which tensors and experts saw too little text, what quantizing does about it, and what can be done instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix

FEW = 256  # tokens: below that a mean square of one column is off by some 10 %


@dataclass(frozen=True)
class Gap:
    """A tensor that is not fully covered. unseen, few: experts (or 0, the only matrix) and how they will fare."""

    name: str
    n_mat: int
    unseen: tuple[int, ...]
    few: tuple[int, ...]
    smallest: int
    consequence: str


# Small convolutions, what is added, tables of numbers: never multiplied as matrices.
NO_MATRIX = ("_norm", "conv1d", "shortconv.conv", "attn_rel_b", "_compressor_ape", "_tid2eid")


def uncollected(matrix: ImportanceMatrix, tensors: Iterable[tuple[str, int]]) -> list[str]:
    """Names among a model's tensors (name, number of dimensions) that quantizing will look up in vain."""
    return [
        name
        for name, n_dims in tensors
        if name.startswith("blk.")
        and name.endswith(".weight")
        and n_dims > 1
        and name not in matrix.entries
        and not any(part in name for part in NO_MATRIX)
    ]


def gaps(matrix: ImportanceMatrix, missed: Iterable[str] = (), few: int = FEW) -> list[Gap]:
    """Tensors with matrices that saw fewer than `few` tokens, and those that have no entry at all (`missed`)."""
    found = [
        Gap(name, 1, (0,), (), 0, "no entry: quantized without importance; IQ1, IQ2 and IQ3_XXS types refuse")
        for name in missed
    ]
    for name, entry in matrix.entries.items():
        unseen = tuple(np.flatnonzero(entry.counts == 0).tolist())
        scarce = tuple(np.flatnonzero((entry.counts > 0) & (entry.counts < few)).tolist())
        if unseen or scarce:
            effects = []
            if unseen:
                effects.append(f"{len(unseen)} unseen: all columns weigh the same")
            if scarce:
                effects.append(f"{len(scarce)} with few tokens: means are noisy")
            found.append(
                Gap(name, len(entry.counts), unseen, scarce, int(entry.counts.min()), "; ".join(effects))
            )
    return found


def shrunk(matrix: ImportanceMatrix, strength: int) -> ImportanceMatrix:
    """Draw every expert's mean square toward that of its layer, as if it had seen `strength` more average tokens.

    An expert with n tokens keeps n / (n + strength) of its own mean; one that saw nothing gets the layer's.
    Counts grow by `strength`. Raises ImatrixError when it is negative.
    """
    if strength < 0:
        raise ImatrixError(f"--shrink-experts {strength}: a number of tokens cannot be negative")
    if not strength:
        return matrix
    return replace(matrix, entries={name: _shrunk(entry, strength) for name, entry in matrix.entries.items()})


def _shrunk(entry: Entry, strength: int) -> Entry:
    total = int(entry.counts.sum())
    if len(entry.counts) == 1 or total == 0:
        return entry

    def drawn(sums: np.ndarray) -> np.ndarray:
        layer = sums.astype(np.float64).sum(0) / total
        return (sums + strength * layer).astype(np.float32)

    in_sum = None if entry.in_sum is None else drawn(entry.in_sum)
    return Entry(drawn(entry.in_sum2), entry.counts + strength, in_sum)
