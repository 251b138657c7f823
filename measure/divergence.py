"""How far a quantized model's predictions are from its base: KL divergence and its relatives, with errors.

The statistics and their names are llama-perplexity's (tools/perplexity/perplexity.cpp: kl_divergence). Added
here: tests whether one quantization is better than another on the same chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.measure.perplexity import Estimate, estimate, exponential, perplexity

KLD_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
P_DIFF_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)
FLIPS = 100_000  # sign patterns of a permutation test that is too long to be complete


@dataclass(frozen=True)
class TokenScores:
    """Per scored token, f64 [n]: −log p of the target under the model and under the base, KL divergence from
    the base in nats, difference of the target's probability; whether both put the same token on top."""

    nll: np.ndarray
    nll_base: np.ndarray
    kld: np.ndarray
    p_diff: np.ndarray
    same_top: np.ndarray

    @staticmethod
    def joined(parts: Sequence[TokenScores]) -> TokenScores:
        fields = ("nll", "nll_base", "kld", "p_diff", "same_top")
        return TokenScores(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


@dataclass(frozen=True)
class Divergence:
    """The summary llama-perplexity prints. Probabilities are fractions, percentiles are by percent."""

    n_tokens: int
    ppl: Estimate
    ppl_base: Estimate
    correlation: float | None  # of ln PPL over tokens; None when nothing varies
    ln_ratio: Estimate
    ratio: Estimate
    ppl_diff: Estimate
    kld: Estimate
    kld_max: float
    kld_min: float
    kld_percentiles: dict[float, float]
    p_diff: Estimate
    p_diff_max: float
    p_diff_min: float
    p_diff_percentiles: dict[float, float]
    p_diff_rms: Estimate
    same_top: Estimate


def summarize(s: TokenScores) -> Divergence:
    """All statistics of the scored tokens, each with its standard error where it has one."""
    n = s.nll.size
    ln_ppl, ln_base = estimate(s.nll), estimate(s.nll_base)
    covariance = (float((s.nll * s.nll_base).mean()) - ln_ppl.value * ln_base.value) / max(n - 1, 1)
    ln_ratio = ln_ppl.value - ln_base.value
    # The difference is taken per token, so the errors' common part cancels.
    ln_error = math.sqrt(max(0.0, ln_ppl.error**2 + ln_base.error**2 - 2 * covariance))
    ppl, ppl_base = perplexity(s.nll), perplexity(s.nll_base)
    diff_error = ppl.error**2 + ppl_base.error**2 - 2 * ppl.value * ppl_base.value * covariance
    errors = ln_ppl.error * ln_base.error
    square = estimate(s.p_diff**2)
    rms = math.sqrt(square.value)
    same = float(s.same_top.mean())
    return Divergence(
        n_tokens=n,
        ppl=ppl,
        ppl_base=ppl_base,
        correlation=covariance / errors if errors > 0 else None,
        ln_ratio=Estimate(ln_ratio, ln_error),
        ratio=exponential(Estimate(ln_ratio, ln_error)),
        ppl_diff=Estimate(ppl.value - ppl_base.value, math.sqrt(max(0.0, diff_error))),
        kld=estimate(s.kld),
        kld_max=float(s.kld.max()),
        kld_min=float(s.kld.min()),
        kld_percentiles=dict(
            zip(KLD_PERCENTILES, np.percentile(s.kld, KLD_PERCENTILES).tolist(), strict=True)
        ),
        p_diff=estimate(s.p_diff),
        p_diff_max=float(s.p_diff.max()),
        p_diff_min=float(s.p_diff.min()),
        p_diff_percentiles=dict(
            zip(P_DIFF_PERCENTILES, np.percentile(s.p_diff, P_DIFF_PERCENTILES).tolist(), strict=True)
        ),
        p_diff_rms=Estimate(rms, 0.5 / rms * square.error if rms > 0 else 0.0),
        same_top=Estimate(same, math.sqrt(same * (1 - same) / max(n - 1, 1))),
    )


@dataclass(frozen=True)
class PairedTest:
    """Mean difference a − b over chunks, its error, and the chance of one as large if a and b were alike."""

    difference: Estimate
    p_value: float
    n_chunks: int


def paired_test(a: np.ndarray, b: np.ndarray, n_chunks: int) -> PairedTest:
    """Two-sided sign-flip permutation test on chunk means of per-token values a and b [n_tokens].

    Chunks, not tokens, are exchangeable: neighbouring tokens depend on each other. Up to 16 chunks all sign
    patterns are counted, beyond that FLIPS patterns drawn with a fixed seed.
    """
    difference = (a - b).reshape(n_chunks, -1).mean(axis=1)
    observed = abs(float(difference.sum()))
    if n_chunks <= 16:
        patterns = np.arange(1 << n_chunks)[:, None] >> np.arange(n_chunks) & 1
        flips = np.abs((2 * patterns - 1) @ difference)
        p_value = float((flips >= observed * (1 - 1e-12)).mean())
    else:
        signs = np.random.default_rng(1).integers(0, 2, size=(FLIPS, n_chunks), dtype=np.int8) * 2 - 1
        flips = np.abs(signs @ difference)
        p_value = float((1 + (flips >= observed * (1 - 1e-12)).sum()) / (1 + FLIPS))
    spread = float(difference.std(ddof=1)) / math.sqrt(n_chunks) if n_chunks > 1 else math.nan
    return PairedTest(Estimate(float(difference.mean()), spread), p_value, n_chunks)
