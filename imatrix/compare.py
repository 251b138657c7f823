"""How far two importance matrices of one model are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix


@dataclass(frozen=True)
class TensorDifference:
    """relative: ‖b − a‖ / ‖a‖ of the mean squares of all columns; total: relative difference of their sums
    cosine: of the mean squares; counts: largest relative difference of a count (experts one by one)
    worst_matrix: the expert with the largest relative difference; 0 for a plain matrix
    """

    name: str
    relative: float
    total: float
    cosine: float
    counts: float
    worst_matrix: int


@dataclass(frozen=True)
class Difference:
    """tensors: in both, sorted by falling `relative`; only_first, only_second: names in one of the two."""

    tensors: tuple[TensorDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def difference(first: ImportanceMatrix, second: ImportanceMatrix) -> Difference:
    """Compare what both hold, in float64; experts that one of the two never saw count as 1.0, as when quantizing.

    Raises ImatrixError when an entry differs in size: these are two models then.
    """
    rows = [
        _difference(name, entry, second.entries[name])
        for name, entry in first.entries.items()
        if name in second.entries
    ]
    return Difference(
        tuple(sorted(rows, key=lambda row: -row.relative)), _missing(first, second), _missing(second, first)
    )


def _missing(one: ImportanceMatrix, other: ImportanceMatrix) -> tuple[str, ...]:
    names: Mapping[str, Entry] = other.entries
    return tuple(name for name in one.entries if name not in names)


def _difference(name: str, first: Entry, second: Entry) -> TensorDifference:
    if first.n_values != second.n_values:
        raise ImatrixError(
            f"{name}: {first.n_values} values in one file, {second.n_values} in the other; "
            "they belong to different models"
        )
    n_mat = max(len(first.counts), len(second.counts))
    a = first.means().astype(np.float64).reshape(n_mat, -1)
    b = second.means().astype(np.float64).reshape(n_mat, -1)
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    by_matrix = np.linalg.norm(b - a, axis=1) / np.maximum(np.linalg.norm(a, axis=1), np.finfo(float).tiny)
    product = norm_a * norm_b
    return TensorDifference(
        name,
        relative=_ratio(float(np.linalg.norm(b - a)), norm_a),
        total=_ratio(float(b.sum() - a.sum()), float(a.sum())),
        cosine=float((a * b).sum()) / product if product else float(norm_a == norm_b),
        counts=float((np.abs(second.counts - first.counts) / np.maximum(first.counts, 1)).max()),
        worst_matrix=int(by_matrix.argmax()),
    )


def _ratio(value: float, of: float) -> float:
    if of:
        return value / of
    return 0.0 if value == 0 else float("inf")
