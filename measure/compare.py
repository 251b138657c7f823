"""One pass over a text with a base and any number of quants: every chunk runs through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quantmill.measure.divergence import PairedTest, TokenScores, paired_test
from quantmill.measure.errors import MeasureError
from quantmill.measure.logits_file import Base, DenseBase, LogitsFile, LogitsWriter, RowsBase
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import batches, scored_logits, targets
from quantmill.models.workers import ALONE, Tell, Workers
from quantmill.qkernels.likelihoods import of_logits

SAMPLE = 20_000  # characters of a text that two vocabularies must split alike


@dataclass(frozen=True)
class Pass:
    """What a pass found. base_nll [n] f64; scores: one per quant, in order; n_chunks of the text."""

    base_nll: np.ndarray
    scores: tuple[TokenScores, ...]
    n_chunks: int


@dataclass(frozen=True)
class Batch:
    """What all models say of some chunks, up to chunk `stop`. base_nll [n] f64, None where a file is the base."""

    stop: int
    base_nll: np.ndarray | None
    scores: tuple[TokenScores, ...]


def joined(batches: Sequence[Batch]) -> Pass:
    """All batches of a text, in order, as one pass."""
    scores = tuple(
        TokenScores.joined(parts) for parts in zip(*(batch.scores for batch in batches), strict=True)
    )
    parts = [batch.base_nll for batch in batches if batch.base_nll is not None]
    base_nll = np.concatenate(parts) if parts else scores[0].nll_base if scores else np.empty(0)
    return Pass(base_nll, scores, batches[-1].stop)


def check_vocabularies(base: LoadedModel, quants: Sequence[LoadedModel], text: str) -> None:
    """Raises MeasureError unless all predict over the same tokens, told by size and by the text's beginning."""
    sample = text[:SAMPLE]
    wanted = base.tokenizer.encode(sample)
    for quant in quants:
        if quant.n_vocab != base.n_vocab:
            raise MeasureError(
                f"{quant.path} has a vocabulary of {quant.n_vocab}, the base {base.path} of {base.n_vocab}; "
                "only models with one vocabulary can be compared"
            )
        if quant is not base and quant.tokenizer.encode(sample) != wanted:
            raise MeasureError(
                f"{quant.path} and the base {base.path} split the text differently; "
                "only models with one vocabulary can be compared"
            )


def check_base_file(file: LogitsFile, quants: Sequence[LoadedModel], n_ctx: int | None) -> None:
    """Raises MeasureError when a base file does not belong to these models or this context."""
    if n_ctx is not None and n_ctx != file.header.n_ctx:
        raise MeasureError(
            f"{file.path} was computed with a context of {file.header.n_ctx}, not {n_ctx}; "
            f"use --ctx {file.header.n_ctx} or leave it out"
        )
    for quant in quants:
        if quant.n_vocab != file.header.n_vocab:
            raise MeasureError(
                f"{file.path} has a vocabulary of {file.header.n_vocab}, {quant.path} of {quant.n_vocab}; "
                "only models with one vocabulary can be compared"
            )


def run(
    base: LoadedModel | LogitsFile,
    quants: Sequence[LoadedModel],
    chunks: np.ndarray,
    writers: Sequence[LogitsWriter] = (),
) -> Pass:
    """All of run_batches at once."""
    return joined(list(run_batches(base, quants, chunks, writers)))


def run_batches(
    base: LoadedModel | LogitsFile,
    quants: Sequence[LoadedModel],
    chunks: np.ndarray,
    writers: Sequence[LogitsWriter] = (),
    advance: Callable[[int], None] = lambda tokens: None,
    first: int = 0,
    workers: Workers = ALONE,
) -> Iterator[Batch]:
    """Score chunks [n_chunk, n_ctx] i32 with all models, from chunk `first` on, which a batch must have ended at.

    writers: files to put the base's logits into. advance: told the tokens done, of all models together. workers: run
    batches side by side; that does not show in what is found.
    Raises MeasureError for logits that are not finite.
    """
    n_chunk, n_ctx = chunks.shape
    n_vocab = base.header.n_vocab if isinstance(base, LogitsFile) else base.n_vocab

    def one(item: tuple[slice, np.ndarray], tell: Tell) -> tuple[Batch, list[list[bytes]]]:
        return score_batch(base, quants, *item, writers, tell)

    left = [(batch, chunks[batch]) for batch in batches(n_chunk, n_ctx, n_vocab) if batch.start >= first]
    for found, encoded in workers.in_order(one, left, advance):
        for writer, parts in zip(writers, encoded, strict=True):
            for chunk in parts:
                writer.append(chunk)
        yield found


def score_batch(
    base: LoadedModel | LogitsFile,
    quants: Sequence[LoadedModel],
    batch: slice,
    chunks: np.ndarray,
    writers: Sequence[LogitsWriter] = (),
    tell: Tell = lambda tokens: None,
) -> tuple[Batch, list[list[bytes]]]:
    """What all models say of some chunks [n_seq, n_ctx] i32, `batch` of the text's; and what each writer writes."""
    wanted = torch.from_numpy(targets(chunks).astype(np.int64))
    side = _base_side(base, chunks, batch, wanted, writers)
    tell(0 if isinstance(base, LogitsFile) else chunks.size)
    found = []
    for quant in quants:
        logits = scored_logits(quant, chunks)
        parts = [
            chunk.compare(rows, target.to(rows.device))
            for chunk, rows, target in zip(side.chunks, logits, wanted, strict=True)
        ]
        found.append(TokenScores.joined(parts))
        tell(chunks.size)
    return Batch(batch.stop, side.nll, tuple(found)), side.encoded


@dataclass(frozen=True)
class _Side:
    """The base in one batch: its predictions of each chunk, −log p of the targets, what each writer is to write."""

    chunks: list[Base]
    nll: np.ndarray | None
    encoded: list[list[bytes]]


def _base_side(
    base: LoadedModel | LogitsFile,
    chunks: np.ndarray,
    batch: slice,
    wanted: torch.Tensor,
    writers: Sequence[LogitsWriter],
) -> _Side:
    if isinstance(base, LogitsFile):
        return _Side([base.base(chunk) for chunk in range(batch.start, batch.stop)], None, [])
    sides: list[Base] = []
    encoded: list[list[bytes]] = [[] for _ in writers]
    nll = []
    logits = scored_logits(base, chunks)
    for rows, target in zip(logits, wanted, strict=True):
        target = target.to(rows.device)
        for writer, parts in zip(writers, encoded, strict=True):
            parts.append(writer.encoded(rows, target))
        if rows.device.type == "cpu":
            known = of_logits(rows.numpy())
            nll.append(-known.log_p(target.numpy()))
            sides.append(RowsBase(known))
            continue
        log_p = torch.log_softmax(rows, dim=-1)
        nll.append(-log_p.gather(-1, target[:, None]).squeeze(-1).cpu().double().numpy())
        sides.append(DenseBase(log_p))
    return _Side(sides, np.concatenate(nll), encoded)


@dataclass(frozen=True)
class Rank:
    """A quant's place by mean divergence; `test` compares it with the next one, None for the last."""

    index: int
    kld: float
    test: PairedTest | None


def ranking(scores: Sequence[TokenScores], n_chunks: int) -> tuple[Rank, ...]:
    """Quants by mean KL divergence, the least first. Perplexity is not asked: it can fall by chance."""
    order = sorted(range(len(scores)), key=lambda i: float(scores[i].kld.mean()))
    ranks = []
    for place, i in enumerate(order):
        following = order[place + 1] if place + 1 < len(order) else None
        test = None if following is None else paired_test(scores[i].kld, scores[following].kld, n_chunks)
        ranks.append(Rank(i, float(scores[i].kld.mean()), test))
    return tuple(ranks)
