"""Perplexity by llama-perplexity's definition, and the statistics of a mean.

A text is cut into chunks of n_ctx tokens; the first token of each is replaced by BOS when the model wants
one; the second half of each chunk is scored: positions n_ctx/2 … n_ctx−2 predict their next token
(tools/perplexity/perplexity.cpp: perplexity).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_EXPONENT = 709  # exp of more is no float64


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which is NaN where one value says nothing of it; in files that is null."""

    value: float
    error: float

    def scaled(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.error * abs(factor))


def estimate(values: np.ndarray) -> Estimate:
    """Mean of values [n] and sqrt(variance / (n − 1)); no error is claimed for ten values or fewer."""
    n = values.size
    mean = float(values.mean())
    variance = float((values * values).mean()) - mean * mean
    return Estimate(mean, math.sqrt(variance / (n - 1)) if n > 10 and variance > 0 else 0.0)


def perplexity(nll: np.ndarray) -> Estimate:
    """exp of the mean negative log-likelihood, nll [n] f64, with the error carried through."""
    return exponential(estimate(nll))


def exponential(mean: Estimate) -> Estimate:
    """exp of a mean; infinite where a broken model's is too large for a number."""
    value = math.exp(mean.value) if mean.value < MAX_EXPONENT else math.inf
    return Estimate(value, value * mean.error if mean.error else 0.0)
