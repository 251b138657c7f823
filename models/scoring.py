"""Which tokens of a text are scored, and their probabilities: the rules of llama-perplexity.

A text is cut into chunks of n_ctx tokens; the first token of each is replaced by BOS when the model wants
one; the second half of each chunk is scored: positions n_ctx/2 … n_ctx−2 predict their next token
(tools/perplexity/perplexity.cpp: perplexity).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from quantmill.models.errors import ModelError
from quantmill.models.model import LoadedModel
from quantmill.models.seen import require_known, seen_ids
from quantmill.qkernels.likelihoods import of_logits

LOGIT_BYTES = 1 << 28  # float32 logits held at a time, of all sequences of a batch
BATCH_TOKENS = 2048
LEAST_BATCHES = 12  # where there are as many chunks


def cut(tokens: list[int], n_ctx: int, limit: int | None = None) -> np.ndarray:
    """Tokens of a text -> chunks [n_chunk, n_ctx] i32, at most `limit`; what is left over is dropped.

    Raises ModelError when the text has fewer than two chunks, as llama-perplexity does.
    """
    if n_ctx < 4:
        raise ModelError(f"a context of {n_ctx} tokens scores nothing; use at least 4")
    if len(tokens) < 2 * n_ctx:
        raise ModelError(
            f"the text has {len(tokens)} tokens, a context of {n_ctx} needs at least {2 * n_ctx}; "
            "give a longer text or a smaller --ctx"
        )
    n_chunk = len(tokens) // n_ctx
    if limit is not None:
        n_chunk = min(n_chunk, limit)
    return np.array(tokens[: n_chunk * n_ctx], dtype=np.int32).reshape(n_chunk, n_ctx)


def targets(chunks: np.ndarray) -> np.ndarray:
    """The scored tokens of chunks [n_chunk, n_ctx]: [n_chunk, n_ctx − 1 − n_ctx/2] i32."""
    return chunks[:, chunks.shape[1] // 2 + 1 :]


def batches(n_chunk: int, n_ctx: int, n_vocab: int) -> list[slice]:
    """Which chunks run together: about 2048 tokens, no more logits than LOGIT_BYTES, and so that threads share them."""
    fits = LOGIT_BYTES // (4 * n_vocab * (n_ctx - n_ctx // 2))
    step = max(1, min(BATCH_TOKENS // n_ctx, -(-n_chunk // LEAST_BATCHES), fits))
    return [slice(i, min(i + step, n_chunk)) for i in range(0, n_chunk, step)]


def scored_logits(loaded: LoadedModel, chunks: np.ndarray) -> torch.Tensor:
    """chunks [n_seq, n_ctx] -> logits [n_seq, n_ctx − 1 − n_ctx/2, n_vocab] f32 that predict `targets`."""
    return loaded.logits(input_ids(loaded, chunks), first=chunks.shape[1] // 2)[:, :-1].float()


def input_ids(loaded: LoadedModel, chunks: np.ndarray) -> torch.Tensor:
    """chunks [n_seq, n_ctx] -> what the model sees, i64: with its BOS, where it wants one, in the first place.

    Raises ModelError for a token outside the vocabulary.
    """
    require_known(chunks, loaded.tokenizer.first, loaded.n_vocab)
    return seen_ids(chunks, loaded.tokenizer.first)


def row_slabs(n_rows: int, n_vocab: int) -> Iterator[slice]:
    """Rows of a logits matrix whose temporaries stay small beside the matrix."""
    step = max(1, (1 << 22) // n_vocab)
    return (slice(i, min(i + step, n_rows)) for i in range(0, n_rows, step))


def token_nll(logits: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """logits [n, n_vocab] of any floating type, target [n] i64 -> −log p of the targets, [n] f64."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return -of_logits(logits.numpy()).log_p(target.numpy())
    out = []
    for rows in row_slabs(*logits.shape):
        slab = logits[rows].float()
        out.append(torch.logsumexp(slab, dim=-1) - slab.gather(-1, target[rows, None]).squeeze(-1))
    return torch.cat(out).cpu().double().numpy()
