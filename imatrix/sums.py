"""Sums as they are kept on the device, and how they become entries.

The sums of a batch are added to the totals with the rounding error of each addition kept in a second float32
(Knuth's two-sum, which works where there is no float64), so that a long run loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from quantmill.gguf_io.convert.rules import Index
from quantmill.imatrix.matrix import Entry


@dataclass(frozen=True)
class Taker:
    """A GGUF tensor that takes its statistics from one input.

    matrix: which matrix of the tensor's stack this input feeds, None: all, or the only one
    columns: which columns of the input, in which order, None: all
    n_mat: matrices in the tensor
    """

    name: str
    matrix: int | None
    columns: Index | None
    n_mat: int


@dataclass(frozen=True)
class Input:
    """One place where activations enter a matmul. name: its own, in every run; n_mat: matrices counted apart."""

    name: str
    takers: tuple[Taker, ...]
    n_mat: int = 1


@dataclass
class Batch:
    """What one input saw in the batch that is running: sums [n_mat, n_cols] f32 on the device."""

    square: torch.Tensor
    plain: torch.Tensor | None
    counts: np.ndarray


def joined(one: Batch, other: Batch) -> Batch:
    plain = None if one.plain is None or other.plain is None else one.plain + other.plain
    return Batch(one.square + other.square, plain, one.counts + other.counts)


Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Sums:
    """What has entered a place in all: rows counts [n_mat] i64, Σx² and Σx [n_mat, n_cols] in two f32 each."""

    counts: np.ndarray
    square: Pair
    plain: Pair | None


def with_batch(sums: Sums | None, seen: Batch) -> Sums:
    """The sums after a batch, on the batch's device; sums that are kept (unfinished.py) come from the host."""
    if sums is None:
        plain = None if seen.plain is None else _begun(seen.plain)
        return Sums(seen.counts.astype(np.int64), _begun(seen.square), plain)
    plain = None if sums.plain is None or seen.plain is None else added(sums.plain, seen.plain)
    return Sums(sums.counts + seen.counts, added(sums.square, seen.square), plain)


def _begun(value: torch.Tensor) -> Pair:
    return value, torch.zeros_like(value)


def added(sums: Pair, value: torch.Tensor) -> Pair:
    """Two-sum: (high, low) + value, where low gathers what high cannot hold."""
    high, low = (part.to(value.device) for part in sums)
    high_after = high + value
    part = high_after - high
    return high_after, low + ((high - (high_after - part)) + (value - part))


def total(pair: Pair) -> np.ndarray:
    """The sum, rounded once, on the host: f32."""
    high, low = (part.cpu().double() for part in pair)
    return (high + low).float().numpy()


def entries(inputs: Iterable[Input], sums: Mapping[str, Sums]) -> dict[str, Entry]:
    """Sums by the name of their place → entries by GGUF name, on the host."""
    found: dict[str, Entry] = {}
    for place in inputs:
        seen = sums.get(place.name)
        if seen is None:
            continue
        square = total(seen.square)
        plain = None if seen.plain is None else total(seen.plain)
        for taker in place.takers:
            take(found, taker, seen.counts, square, plain)
    return found


def take(
    found: dict[str, Entry], taker: Taker, counts: np.ndarray, square: np.ndarray, plain: np.ndarray | None
) -> None:
    """Put what one input saw (square, plain: [n_mat, n_cols]) under the name of a tensor that takes from it."""

    def chosen(values: np.ndarray | None) -> np.ndarray | None:
        return values if values is None or taker.columns is None else values[:, taker.columns]

    square_of, plain_of = chosen(square), chosen(plain)
    assert square_of is not None
    if taker.matrix is None:
        if taker.n_mat > len(square_of):  # a matrix cut into heads that share one input: one count for all
            square_of = np.tile(square_of, (1, taker.n_mat))
            plain_of = None if plain_of is None else np.tile(plain_of, (1, taker.n_mat))
        found[taker.name] = Entry(square_of, counts, plain_of)
        return
    # one expert of a stack whose experts are modules of their own
    n_cols = square_of.shape[1]
    if taker.name not in found:
        empty = np.zeros((taker.n_mat, n_cols), np.float32)
        sums = None if plain_of is None else empty.copy()
        found[taker.name] = Entry(empty, np.zeros(taker.n_mat, np.int64), sums)
    entry = found[taker.name]
    entry.in_sum2[taker.matrix] = square_of[0]
    entry.counts[taker.matrix] = counts[0]
    if entry.in_sum is not None and plain_of is not None:
        entry.in_sum[taker.matrix] = plain_of[0]
