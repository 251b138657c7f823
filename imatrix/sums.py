"""Sums as they are kept on the device, and how they become entries.

The sums of a batch are added to the totals with the rounding error of each addition kept in a second float32
(Knuth's two-sum, which works where there is no float64), so that a long run loses nothing.
"""

from __future__ import annotations

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


@dataclass
class Input:
    """One place where activations enter a matmul: [n_mat] row counts, [n_mat, n_cols] sums in two float32."""

    takers: tuple[Taker, ...]
    counts: np.ndarray
    square: tuple[torch.Tensor, torch.Tensor] | None = None
    plain: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass
class Batch:
    """What one input saw in the batch that is running: sums [n_mat, n_cols] f32 on the device."""

    square: torch.Tensor
    plain: torch.Tensor | None
    counts: np.ndarray


def joined(one: Batch, other: Batch) -> Batch:
    plain = None if one.plain is None or other.plain is None else one.plain + other.plain
    return Batch(one.square + other.square, plain, one.counts + other.counts)


def added(
    sums: tuple[torch.Tensor, torch.Tensor] | None, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two-sum: (high, low) + value, where low gathers what high cannot hold."""
    if sums is None:
        return value, torch.zeros_like(value)
    high, low = sums
    high_after = high + value
    part = high_after - high
    return high_after, low + ((high - (high_after - part)) + (value - part))


def total(pair: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    """The sum, rounded once, on the host: f32."""
    high, low = (part.cpu().double() for part in pair)
    return (high + low).float().numpy()


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
