"""A base model's predictions on disk, so that quants can be compared without the base.

Two formats. llama.cpp's `_logits_` file, about 2 bytes a vocabulary entry and position, read and written:

    "_logits_" | i32 n_ctx | i32 n_vocab | i32 n_chunk | i32 tokens[n_chunk · n_ctx]
    per scored position: f32 scale | f32 min_log_prob | u16 code[n_vocab, padded to even]

with log p = scale · code + min_log_prob and everything 16 nats below the top at code 0
(tools/perplexity/perplexity.cpp: log_softmax). And our compact one, k entries a position:

    "_qmtopk_" | i32 version | i32 n_ctx | i32 n_vocab | i32 n_chunk | i32 k | i32 tokens[n_chunk · n_ctx]
    per scored position: f32 scale | f32 min_log_prob | f32 tail | f32 entropy | f32 target
                         u32 id[k] by falling probability | u16 code[k]

`tail` is the exact probability of all other tokens, `entropy` the exact entropy in nats, `target` the exact
log-probability of the token that follows. The divergence inside the tail is not known; it is taken to be that
inside the less likely half of the k tokens. With k = 1024 the mean divergence is then within 0.5 % of the full
sum (SmolLM2-135M, vocabulary 49152: −0.50 % for Q8_0, −0.09 % for Q4_K_M, −0.13 % for Q2_K; bench/evaluate.py),
and a vocabulary of 150 000 takes 6164 bytes a position instead of 300 008.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch

from quantmill.gguf_io.filesystem import open_regular
from quantmill.gguf_io.outputs import require_space
from quantmill.gguf_io.partial import PartialFile, resolved
from quantmill.gguf_io.renaming import finish_all
from quantmill.measure.divergence import TokenScores
from quantmill.measure.errors import MeasureError
from quantmill.measure.token_scores import compare, compare_rows, scores
from quantmill.models.scoring import row_slabs
from quantmill.qkernels.likelihoods import Rows, of_codes

LLAMA_MAGIC, COMPACT_MAGIC = b"_logits_", b"_qmtopk_"
CLIP = 16.0  # nats below the top at which llama.cpp stops resolving
VERSION = 1
TOP_K = 1024


@dataclass(frozen=True)
class Header:
    """k is 0 for llama.cpp's format."""

    n_ctx: int
    n_vocab: int
    n_chunk: int
    k: int = 0

    @property
    def n_scored(self) -> int:
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def row(self) -> np.dtype:
        """One scored position."""
        if self.k == 0:
            padded = 2 * ((self.n_vocab + 1) // 2)
            return np.dtype([("scale", "<f4"), ("low", "<f4"), ("code", "<u2", padded)])
        numbers = [(name, "<f4") for name in ("scale", "low", "tail", "entropy", "target")]
        return np.dtype([*numbers, ("id", "<u4", self.k), ("code", "<u2", self.k)])

    def encoded(self) -> bytes:
        if self.k == 0:
            return LLAMA_MAGIC + struct.pack("<3i", self.n_ctx, self.n_vocab, self.n_chunk)
        return COMPACT_MAGIC + struct.pack("<5i", VERSION, self.n_ctx, self.n_vocab, self.n_chunk, self.k)


class Base(Protocol):
    """One chunk of a base model's predictions, from memory or a file."""

    def compare(self, logits: torch.Tensor, target: torch.Tensor) -> TokenScores: ...


@dataclass(frozen=True)
class DenseBase:
    """All log-probabilities [n, n_vocab] f32, on a device."""

    log_p: torch.Tensor

    def compare(self, logits: torch.Tensor, target: torch.Tensor) -> TokenScores:
        return compare(self.log_p.to(logits.device), logits, target)


@dataclass(frozen=True)
class RowsBase:
    """All log-probabilities in main memory; floor: what a file does not resolve below."""

    rows: Rows
    floor: float | None = None

    def compare(self, logits: torch.Tensor, target: torch.Tensor) -> TokenScores:
        if logits.device.type == "cpu":
            return compare_rows(self.rows, logits, target, self.floor)
        log_p = torch.from_numpy(self.rows.side.values()).to(logits.device)
        return compare(log_p, logits, target, self.floor)


@dataclass(frozen=True)
class TopBase:
    """ids, log_p [n, k] by falling probability; tail, target [n]."""

    ids: torch.Tensor
    log_p: torch.Tensor
    tail: torch.Tensor
    target: torch.Tensor

    def compare(self, logits: torch.Tensor, target: torch.Tensor) -> TokenScores:
        parts = []
        for rows in row_slabs(*logits.shape):
            ids, log_p, tail, base_target = (
                x[rows].to(logits.device) for x in (self.ids, self.log_p, self.tail, self.target)
            )
            log_q = torch.log_softmax(logits[rows], dim=-1)
            top_q = log_q.gather(-1, ids)
            kld = (log_p.exp() * (log_p - top_q)).sum(-1)
            # The tail of q is summed itself: 1 − Σ top would lose it to rounding.
            tail_q = log_q.scatter(-1, ids, -torch.inf).logsumexp(-1)
            half = ids.shape[1] // 2
            within = _divergence_within(log_p[:, half:], top_q[:, half:])
            kld += torch.where(tail > 0, tail * (tail.log() - tail_q + within), 0.0)
            nll = -log_q.gather(-1, target[rows, None]).squeeze(-1)
            parts.append(scores(nll, -base_target, kld, logits[rows].argmax(-1) == ids[:, 0]))
        return TokenScores.joined(parts)


def _divergence_within(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Divergence [n] of the distributions that log_p and log_q [n, m] are when they are all there is."""
    log_p = log_p - log_p.logsumexp(-1, keepdim=True)
    log_q = log_q - log_q.logsumexp(-1, keepdim=True)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class LogitsWriter:
    """Write a base file chunk by chunk; it takes its name when all chunks are there, and not before."""

    def __init__(self, path: Path, tokens: np.ndarray, n_vocab: int, k: int = 0):
        """tokens [n_chunk, n_ctx] i32; k = 0 writes llama.cpp's format. Raises GGUFError for a path that cannot be."""
        self.header = Header(tokens.shape[1], n_vocab, tokens.shape[0], min(k, n_vocab))
        self.chunks_left = tokens.shape[0]
        rows = self.header.n_chunk * self.header.n_scored * self.header.row.itemsize
        start = self.header.encoded() + np.ascontiguousarray(tokens, dtype="<i4").tobytes()
        final = resolved(path)
        require_space([final], len(start) + rows)
        self.file = PartialFile(final, len(start) + rows)
        self.position = 0
        self._write(start)

    def encoded(self, logits: torch.Tensor, target: torch.Tensor) -> bytes:
        """A chunk as the file holds it: logits [n_scored, n_vocab] f32 and target [n_scored] i64."""
        encode = _llama_rows if self.header.k == 0 else _compact_rows
        slabs = row_slabs(*logits.shape)
        return b"".join(encode(logits[rows], target[rows], self.header).tobytes() for rows in slabs)

    def append(self, chunk: bytes) -> None:
        """The next chunk, encoded."""
        self._write(chunk)
        self.chunks_left -= 1

    def _write(self, data: bytes) -> None:
        self.file.write_at(self.position, memoryview(data))
        self.position += len(data)

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self.chunks_left:
            self.file.discard()
        elif not self.file.has_final_name:
            self.file.finish()


def finish(writers: Sequence[LogitsWriter]) -> None:
    """Give complete files their names, all of them or none. Raises GGUFError."""
    assert not any(writer.chunks_left for writer in writers)
    finish_all([writer.file for writer in writers])


def _codes(values: torch.Tensor, low: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """Nearest u16 code of values above low, 0 below, in float32 as llama.cpp does."""
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    codes = torch.where(values > low, torch.round(inverse * (values - low)), 0.0)
    return codes.clamp(0, 65535).to(torch.int32).cpu().numpy().astype("<u2")


def _llama_rows(logits: torch.Tensor, target: torch.Tensor, header: Header) -> np.ndarray:
    top = logits.amax(-1, keepdim=True)
    low = torch.maximum(logits.amin(-1, keepdim=True), top - CLIP)
    scale = (top - low) / 65535
    out = np.zeros(logits.shape[0], dtype=header.row)
    out["scale"] = scale.squeeze(-1).cpu().numpy()
    out["low"] = (low - torch.logsumexp(logits, -1, keepdim=True)).squeeze(-1).cpu().numpy()
    out["code"][:, : header.n_vocab] = _codes(logits, low, scale)
    return out


def _compact_rows(logits: torch.Tensor, target: torch.Tensor, header: Header) -> np.ndarray:
    log_p = torch.log_softmax(logits, dim=-1)
    top, ids = log_p.topk(header.k, dim=-1)
    low = top[:, -1:]
    scale = (top[:, :1] - low) / 65535
    tail = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1).exp()
    out = np.zeros(logits.shape[0], dtype=header.row)
    out["scale"] = scale.squeeze(-1).cpu().numpy()
    out["low"] = low.squeeze(-1).cpu().numpy()
    out["tail"] = tail.cpu().numpy()
    out["entropy"] = -(log_p.exp() * log_p).sum(-1).cpu().numpy()
    out["target"] = log_p.gather(-1, target[:, None]).squeeze(-1).cpu().numpy()
    out["id"] = ids.cpu().numpy()
    out["code"] = _codes(top, low, scale)
    return out


class LogitsFile:
    """An opened base file of either format. tokens [n_chunk, n_ctx] i32."""

    def __init__(self, path: Path):
        self.path = path
        with open_regular(path) as file:
            self.header = _read_header(path, file.read(28))
            start = len(self.header.encoded())
            h = self.header
            size = os.fstat(file.fileno()).st_size
            wanted = start + 4 * h.n_chunk * h.n_ctx + h.n_chunk * h.n_scored * h.row.itemsize
            if size != wanted:
                problem = "is truncated" if size < wanted else "is longer than its header says"
                raise MeasureError(
                    f"{path}: {problem}: {size} bytes, {wanted} expected for {h.n_chunk} chunks of {h.n_ctx} "
                    f"tokens and a vocabulary of {h.n_vocab}; write it again"
                )
            file.seek(start)
            tokens = np.fromfile(file, dtype="<i4", count=h.n_chunk * h.n_ctx)
        self.tokens = tokens.reshape(h.n_chunk, h.n_ctx)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < h.n_vocab:
            raise MeasureError(f"{path}: holds a token outside its vocabulary of {h.n_vocab}; it is damaged")
        self.rows = np.memmap(
            path, dtype=h.row, mode="r", offset=start + 4 * tokens.size, shape=(h.n_chunk, h.n_scored)
        )

    def entropy(self) -> float | None:
        """Mean entropy of the base's predictions in nats; llama.cpp's format does not store it."""
        return float(self.rows["entropy"].mean()) if self.header.k else None

    def base(self, chunk: int) -> Base:
        """The predictions of one chunk."""
        rows = self.rows[chunk]
        if self.header.k == 0:
            codes = rows["code"][:, : self.header.n_vocab]
            return RowsBase(of_codes(codes, rows["scale"], rows["low"]), floor=-CLIP)
        codes = torch.from_numpy(rows["code"].astype(np.float32))
        low, scale = (torch.tensor(rows[name]).unsqueeze(-1) for name in ("low", "scale"))
        log_p = scale * codes + low
        ids = torch.from_numpy(rows["id"].astype(np.int64))
        if int(ids.max()) >= self.header.n_vocab:
            raise MeasureError(
                f"{self.path}: chunk {chunk} names a token outside the vocabulary; it is damaged"
            )
        return TopBase(ids, log_p, torch.tensor(rows["tail"]), torch.tensor(rows["target"]))


def _read_header(path: Path, raw: bytes) -> Header:
    magic = raw[:8]
    if magic == LLAMA_MAGIC and len(raw) >= 20:
        header = Header(*struct.unpack("<3i", raw[8:20]))
    elif magic == COMPACT_MAGIC and len(raw) >= 28:
        version, *numbers = struct.unpack("<5i", raw[8:28])
        if version != VERSION:
            raise MeasureError(
                f"{path}: version {version} of the compact format; this quantmill reads {VERSION}"
            )
        header = Header(*numbers)
        if not 0 < header.k <= header.n_vocab:
            raise MeasureError(
                f"{path}: k = {header.k} for a vocabulary of {header.n_vocab}; the header is damaged"
            )
    else:
        raise MeasureError(f"{path}: neither a llama.cpp _logits_ file nor a quantmill base file")
    if min(header.n_ctx, header.n_vocab, header.n_chunk) < 1 or header.n_ctx < 4:
        raise MeasureError(
            f"{path}: context {header.n_ctx}, vocabulary {header.n_vocab}, {header.n_chunk} chunks: "
            "the header is damaged"
        )
    return header
