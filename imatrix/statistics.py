"""What an importance matrix says about tensors and layers: the columns of llama-imatrix --show-statistics.

Every sum runs in float32 from the first value to the last, as llama.cpp's does, so that the printed digits are
the same (tools/imatrix/imatrix.cpp: compute_statistics, compute_cossim, show_statistics). Compare tensors of
one kind only: Σ(Act²) grows with the width, and kinds differ in scale. ZD score: Dumitru et al.,
arXiv 2406.17415, §3.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quantmill.imatrix.matrix import Entry, ImatrixError, ImportanceMatrix, name_key

ACTIVE = np.float32(1e-5)  # a column whose mean square is not above this counts as inactive
BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class MeanStatistics:
    """From the column means m = Σx / count (experts that saw nothing left out), in float64.

    mean, std, skew, kurtosis (excess): of m over its columns
    gain: root of Σx² / count, summed, relative to the same kind one layer before
    l2_distance, correlation (Pearson), covariance: of m and that layer's m; None without one of equal width
    """

    mean: float
    std: float
    skew: float
    kurtosis: float
    gain: float | None
    l2_distance: float | None
    correlation: float | None
    covariance: float | None


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor. a = Σx² / count over the columns of every expert that saw something.

    total, minimum, maximum, mean, std: of a; active: share of a > 1e-5; n: how many a
    entropy: of a / Σa in bits; entropy_norm: in per cent of log2 n; zd: share of (a − mean) / std > 1
    cossim: cosine with the raw sums of the same kind in the layer before; 0 where there is none
    """

    name: str
    layer: str
    kind: str
    total: float
    minimum: float
    maximum: float
    mean: float
    std: float
    active: float
    n: int
    entropy: float
    entropy_norm: float
    zd: float
    cossim: float
    means: MeanStatistics | None

    @property
    def layer_number(self) -> int | None:
        digits = re.match(r"\d+", self.layer)
        return int(digits[0]) if digits else None


@dataclass(frozen=True)
class LayerStatistics:
    """Means over a layer's tensors, weighted by their number of values."""

    layer: int
    total: float
    zd: float
    cossim: float


def tensor_statistics(matrix: ImportanceMatrix) -> list[TensorStatistics]:
    """One row a tensor, by kind, within a kind by falling Σ(Act²). Tensors that saw nothing have no row.

    Raises ImatrixError when there is no row at all.
    """
    rows = [
        _statistics(name, entry, _previous(name, matrix.entries))
        for name, entry in matrix.entries.items()
        if entry.counts.max(initial=0) > 0
    ]
    if not rows:
        raise ImatrixError("no tensor of this importance matrix has seen any text")
    return sorted(rows, key=lambda row: (name_key(row.kind), -row.total))


def layer_statistics(rows: Sequence[TensorStatistics]) -> list[LayerStatistics]:
    """One row a layer, in order; `rows` in the order of tensor_statistics, in which float32 sums run."""
    f32 = np.float32
    sums: dict[int, list[np.float32]] = {}
    counts: dict[int, int] = {}
    for row in rows:
        number = row.layer_number
        if number is None:
            continue
        parts = sums.setdefault(number, [f32(0)] * 3)
        for i, value in enumerate((row.total, row.zd, row.cossim)):
            parts[i] = f32(parts[i] + f32(row.n) * f32(value))
        counts[number] = counts.get(number, 0) + row.n
    return [
        LayerStatistics(number, *(float(part / f32(counts[number])) for part in sums[number]))
        for number in sorted(sums)
    ]


def split_name(name: str) -> tuple[str, str]:
    """("3", "ffn_down") of blk.3.ffn_down.weight; "-" and the whole name where there is no such part."""
    parts = name.split(".")
    layer = next((after for before, after in pairwise(parts) if before == "blk"), "")
    kind = next((before for before, after in pairwise(parts) if after == "weight"), "")
    return layer or "-", kind or name


def _previous(name: str, entries: Mapping[str, Entry]) -> Entry | None:
    """The entry of the same kind in the layer before, when it has the same number of values."""
    match = BLOCK.search(name)
    if match is None:
        return None
    start, end = match.span(1)
    found = entries.get(f"{name[:start]}{int(match[1]) - 1}{name[end:]}")
    if found is None or found.counts.max(initial=0) == 0 or found.n_values != entries[name].n_values:
        return None
    return found


def _sum(values: np.ndarray) -> np.float32:
    """Sum in float32, one value after the other; numpy's own sum goes pairwise."""
    return np.cumsum(values, dtype=np.float32)[-1]


def _statistics(name: str, entry: Entry, previous: Entry | None) -> TensorStatistics:
    values = entry.means()[entry.counts > 0].reshape(-1)
    size = np.float32(values.size)
    total = _sum(values)
    mean = total / size
    variance = _sum(values * values) / size - mean * mean
    std = np.sqrt(np.maximum(np.float32(0), variance))
    inactive = int(np.count_nonzero(np.abs(values) <= ACTIVE))
    outliers = int(np.count_nonzero((values - mean) / std > 1)) if std > 0 else 0
    entropy = _entropy(values, total)
    layer, kind = split_name(name)
    return TensorStatistics(
        name=name,
        layer=layer,
        kind=kind,
        total=float(total),
        minimum=float(values.min()),
        maximum=float(values.max()),
        mean=float(mean),
        std=float(std),
        active=float(np.float32(1) - np.float32(inactive) / size),
        n=values.size,
        entropy=float(entropy),
        entropy_norm=float(np.float32(100.0 * (float(entropy) / np.log2(values.size))))
        if values.size > 1
        else 0.0,
        zd=float(np.float32(outliers) / size),
        cossim=0.0 if previous is None else _cosine(entry.in_sum2, previous.in_sum2),
        means=None if entry.in_sum is None else _mean_statistics(entry, previous),
    )


def _entropy(values: np.ndarray, total: np.float32) -> np.float32:
    if total <= 0:
        return np.float32(0)
    shares = values / total
    shares = shares[shares > 0]
    # float64 logarithms rounded once are what a careful log2f gives
    logs = np.log2(shares.astype(np.float64)).astype(np.float32)
    return -_sum(shares * logs)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.reshape(-1), other.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return float(_sum(a * b) / (np.sqrt(_sum(a * a)) * np.sqrt(_sum(b * b))))


def _column_means(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """[n] f64 means of the experts that saw something, and [n_mat] bool which those are."""
    seen = entry.counts > 0
    sums = entry.in_sum if entry.in_sum is not None else np.zeros_like(entry.in_sum2)
    return (sums[seen].astype(np.float64) / entry.counts[seen, None]).reshape(-1), seen


def _mean_statistics(entry: Entry, previous: Entry | None) -> MeanStatistics:
    means, seen = _column_means(entry)
    centred = means - means.mean()
    std = float(means.std())
    skew = float((centred**3).mean() / std**3) if std > 0 else 0.0
    kurtosis = float((centred**4).mean() / std**4 - 3) if std > 0 else 0.0
    gain = distance = correlation = covariance = None
    if previous is not None:
        before = float(previous.means()[previous.counts > 0].astype(np.float64).mean())
        now = float(entry.means()[seen].astype(np.float64).mean())
        gain = (now / before) ** 0.5 if before > 0 else None
    if previous is not None and previous.in_sum is not None:
        others, others_seen = _column_means(previous)
        if np.array_equal(seen, others_seen):
            distance = float(np.linalg.norm(means - others))
            covariance = float((centred * (others - others.mean())).mean())
            product = std * float(others.std())
            correlation = covariance / product if product > 0 else None
    return MeanStatistics(float(means.mean()), std, skew, kurtosis, gain, distance, correlation, covariance)
