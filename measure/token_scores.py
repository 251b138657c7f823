"""Predictions of two models → how far they are apart, token by token. What it says in all: measure.divergence."""

from __future__ import annotations

import numpy as np
import torch

from quantmill.measure.divergence import TokenScores
from quantmill.models.scoring import row_slabs
from quantmill.qkernels import likelihoods


def scores(
    nll: torch.Tensor, nll_base: torch.Tensor, kld: torch.Tensor, same_top: torch.Tensor
) -> TokenScores:
    """Tensors [n] on any device -> TokenScores."""
    ours, base = (x.cpu().double().numpy() for x in (nll, nll_base))
    return TokenScores(
        ours, base, kld.cpu().double().numpy(), np.exp(-ours) - np.exp(-base), same_top.cpu().numpy()
    )


def compare_rows(
    base: likelihoods.Rows, logits: torch.Tensor, target: torch.Tensor, floor: float | None = None
) -> TokenScores:
    """As compare, of logits on the CPU."""
    quant, words = likelihoods.of_logits(logits.numpy()), target.numpy()
    nll, nll_base = -quant.log_p(words), -base.log_p(words)
    same = quant.tops == base.tops
    return TokenScores(nll, nll_base, base.divergences(quant, floor), np.exp(-nll) - np.exp(-nll_base), same)


def compare(
    base_log_p: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, floor: float | None = None
) -> TokenScores:
    """base_log_p, logits [n, n_vocab] f32, target [n] i64 -> TokenScores.

    floor: leave out of the divergence what the base gives log p ≤ floor, as llama-perplexity does (−16)
    because its file stores nothing below; None: the whole sum.
    """
    parts = []
    for rows in row_slabs(*logits.shape):
        base, ids = base_log_p[rows], target[rows, None]
        log_q = torch.log_softmax(logits[rows], dim=-1)
        terms = base.exp() * (base - log_q)
        if floor is not None:
            terms = torch.where(base > floor, terms, 0.0)
        parts.append(
            scores(
                -log_q.gather(-1, ids).squeeze(-1),
                -base.gather(-1, ids).squeeze(-1),
                terms.sum(-1),
                logits[rows].argmax(-1) == base.argmax(-1),
            )
        )
    return TokenScores.joined(parts)
