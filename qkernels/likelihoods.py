"""Distributions over many words, a row each, on the CPU: logits become probabilities, and two are compared.

The same as log_softmax, argmax and Σ p (log p - log q) of arrays, without an array for every step: rows go through the
cache once or twice. Terms are float32, sums float64. On the caller's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes import cpu_likelihoods, native
from quantmill.qkernels.lanes.cpu_likelihoods import Side


@dataclass(frozen=True)
class Rows:
    """Distributions [n_rows, n_words]; tops: the likeliest word of each, the first of several, i64 [n_rows]."""

    side: Side
    tops: np.ndarray

    def log_p(self, words: np.ndarray) -> np.ndarray:
        """Of one word a row, i64 [n_rows] → f64 [n_rows]."""
        side = self.side
        chosen = side.numbers[np.arange(len(words)), words]
        scaled = chosen if side.scales is None else side.scales * chosen.astype(np.float32)
        return (scaled + side.shifts).astype(np.float64)

    def divergences(self, other: Rows, floor: float | None = None) -> np.ndarray:
        """Σ p (log p - log q) of each row, f64 [n_rows]; p are these, q the other's, made of logits.

        floor: words with log p ≤ floor are left out.
        """
        least = -np.inf if floor is None else floor
        return cpu_likelihoods.divergences(self.side, other.side, least, native.host())


def of_logits(logits: np.ndarray) -> Rows:
    """logits f32 [n_rows, n_words], finite; they are seen, not copied."""
    assert logits.dtype == np.float32
    host = native.host()
    best, places = cpu_likelihoods.tops(Side(logits, np.zeros(len(logits), np.float32)), host)
    total = cpu_likelihoods.sums(Side(logits, -best), host)
    return Rows(Side(logits, -(best + np.log(total)).astype(np.float32)), places)


def of_codes(codes: np.ndarray, scales: np.ndarray, shifts: np.ndarray) -> Rows:
    """log p = scale · code + shift: codes u16 [n_rows, n_words], scales and shifts f32 [n_rows]; seen, not copied."""
    assert codes.dtype == np.uint16
    side = Side(codes, np.ascontiguousarray(shifts), np.ascontiguousarray(scales))
    return Rows(side, cpu_likelihoods.tops(side, native.host())[1])
