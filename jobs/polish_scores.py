"""What a polish judges by: the divergence from the original of what a model says of held-back chunks."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch

from quantmill.calibrate.head import Divergence
from quantmill.calibrate.student import Student
from quantmill.calibrate.teacher import HiddenStates
from quantmill.jobs.errors import JobError
from quantmill.jobs.polish_request import Job
from quantmill.jobs.watcher import Watcher
from quantmill.measure.divergence import TokenScores, paired_test
from quantmill.measure.token_scores import compare

ACCEPTED = 0.05  # chance that the held-back chunks came out better without being so
WORSE_BASE = 1.05  # times the quant's perplexity on the held-back chunks: then it is not its original


def scores_of(
    student: Student, divergence: Divergence, chunks: np.ndarray, wanted: HiddenStates, watcher: Watcher
) -> TokenScores:
    """The scored tokens of the chunks, by llama-perplexity's rule: the second half of each."""
    n_ctx = chunks.shape[1]
    rows = slice(n_ctx // 2, n_ctx - 1)

    @torch.no_grad()
    def one(first: int, strand: int) -> list[TokenScores]:
        chunk, states = chunks[first + strand], wanted[first + strand]
        hidden = student.hidden(chunk)[rows]
        targets = torch.from_numpy(chunk[n_ctx // 2 + 1 :].astype(np.int64)).to(hidden.device)
        return divergence.compared(
            states[rows].to(hidden.device), hidden, lambda p, q, at: compare(p, q, targets[at])
        )

    divergence.prepare()
    strands, parts = student.strands, []
    for first in range(0, len(chunks), strands.count):
        n = min(strands.count, len(chunks) - first)
        for found in strands.run(partial(one, first), n):
            parts += found
        watcher.progressed(n)
    return TokenScores.joined(parts)


def check_scores(job: Job, scores: TokenScores, n_chunks: int) -> None:
    """Raises JobError for a damaged file, or a base that is not its original."""
    if not np.isfinite(scores.kld).all() or not np.isfinite(scores.nll).all():
        raise JobError(f"{job.quant}: its predictions are not finite; the file is damaged")
    ratio = math.exp(float(scores.nll_base.mean() - scores.nll.mean()))
    test = paired_test(scores.nll_base, scores.nll, n_chunks)
    if ratio > WORSE_BASE and test.p_value <= ACCEPTED:
        raise JobError(
            f"the base {job.base} predicts the held-back text worse than {job.quant}, its perplexity is "
            f"{ratio:.2f} times as high: it is not the original of this file"
        )
