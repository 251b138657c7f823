"""Calibration text → chunks of tokens, as llama-imatrix cuts one text; several texts, weights and conversations.

Source: tools/imatrix/imatrix.cpp: compute_imatrix, common/arg.cpp (--file).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.errors import counted
from quantmill.imatrix.matrix import ImatrixError
from quantmill.models import text as text_files

Render = Callable[[list[dict[str, Any]]], str]

# ShareGPT's words for who speaks, in the words of chat templates
N_CTX = 512  # tokens a chunk, where nothing else is asked for
SPEAKERS = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Text:
    """One calibration file and its share among several; weights are relative, None: as long as it is."""

    path: Path
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ImatrixError(f"{self.path}={self.weight}: the weight of a text must be a positive number")


def text_argument(argument: str) -> Text:
    """FILE or FILE=WEIGHT; a file whose own name ends in =number is taken as it is when it exists.

    Raises ImatrixError for a weight that is no share.
    """
    path, equals, weight = argument.rpartition("=")
    if not (equals and path) or Path(argument).exists():
        return Text(Path(argument))
    try:
        share = float(weight)
    except ValueError:
        return Text(Path(argument))
    return Text(Path(path), share)


@dataclass(frozen=True)
class Cutting:
    """n_ctx: tokens a chunk; n_chunks: at most so many, None: all; from_chunk: skip so many first, in each file
    seed: shuffle the chunks of all files; None: in the order of the files
    fewest: chunks that one text alone must have. way_out: what else helps than a longer text
    """

    n_ctx: int = N_CTX
    n_chunks: int | None = None
    from_chunk: int = 0
    seed: int | None = None
    fewest: int = 2
    way_out: str = ""

    def __post_init__(self) -> None:
        if self.n_ctx < 4:
            raise ImatrixError(f"--ctx-size {self.n_ctx}: a chunk needs at least 4 tokens")
        if self.n_chunks is not None and self.n_chunks < 1:
            raise ImatrixError(f"--chunks {self.n_chunks}: at least one chunk must be run")
        if self.from_chunk < 0:
            raise ImatrixError(f"--from-chunk {self.from_chunk}: cannot be negative")


def read_text(path: Path) -> str:
    """A calibration text as llama.cpp's --file reads it.

    Raises ImatrixError when it is empty, ModelError when it is not UTF-8, OSError when it cannot be read.
    """
    text = text_files.read_text(path)
    if not text.strip():
        raise ImatrixError(f"{path}: the calibration text is empty")
    return text


def read_conversations(path: Path, render: Render) -> str:
    """A JSONL file, one conversation a line, rendered by the model's chat template and put end to end.

    A line is {"messages": [{"role": …, "content": …}, …]}, {"conversations": [{"from": …, "value": …}, …]},
    or the list itself. Raises ImatrixError naming the line that is neither, ModelError for one that is not JSON.
    """
    return "".join(render(_messages(path, number, value)) for number, value in text_files.json_lines(path))


def _messages(path: Path, number: int, value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        value = value.get("messages", value.get("conversations"))
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ImatrixError(f"{path}: line {number} holds no list of messages")
    messages = []
    for item in value:
        role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
        if not isinstance(role, str) or not isinstance(content, str | list):
            raise ImatrixError(f"{path}: line {number}: a message needs a role and a content")
        messages.append({**item, "role": SPEAKERS.get(role, role), "content": content})
    return messages


def cut(tokens: list[int], cutting: Cutting, name: str, at_least: int) -> np.ndarray:
    """Tokens of one text → [n_chunk, n_ctx] i32 from chunk `from_chunk` on; what is left over is dropped.

    Raises ImatrixError when fewer than `at_least` chunks are left.
    """
    n_ctx, skipped = cutting.n_ctx, cutting.from_chunk * cutting.n_ctx
    if len(tokens) - skipped < at_least * n_ctx:
        after = f" after the first {counted(cutting.from_chunk, 'chunk')}" if cutting.from_chunk else ""
        there = counted(max(0, len(tokens) - skipped), "token")
        raise ImatrixError(
            f"{name}: has {there}{after}; {counted(at_least, 'chunk')} of {n_ctx} "
            f"need at least {at_least * n_ctx}: give a longer text{cutting.way_out}"
        )
    n_chunk = (len(tokens) - skipped) // n_ctx
    return np.array(tokens[skipped : skipped + n_chunk * n_ctx], np.int32).reshape(n_chunk, n_ctx)


def chunks_of(texts: Sequence[tuple[Text, list[int]]], cutting: Cutting) -> np.ndarray:
    """Tokens of every text → [n_chunk, n_ctx] i32, file after file, or shuffled when there is a seed.

    With weights, each file gives its share of the chunks: as many in all as the scarcest file allows (and
    --chunks). Raises ImatrixError for a text that is too short, or weights that are not positive.
    """
    at_least = cutting.fewest if len(texts) == 1 else 1
    pieces = [cut(tokens, cutting, str(text.path), at_least) for text, tokens in texts]
    rng = None if cutting.seed is None else np.random.default_rng(cutting.seed)
    if rng is not None:
        pieces = [piece[rng.permutation(len(piece))] for piece in pieces]
    if any(text.weight is not None for text, _ in texts):
        pieces = _weighted([text for text, _ in texts], pieces, cutting.n_chunks)
    chunks = np.concatenate(pieces)
    if rng is not None:
        chunks = chunks[rng.permutation(len(chunks))]
    return chunks[: cutting.n_chunks]


def _weighted(texts: list[Text], pieces: list[np.ndarray], n_chunks: int | None) -> list[np.ndarray]:
    weights = np.array([1.0 if text.weight is None else text.weight for text in texts])
    shares = weights / weights.sum()
    total = min(len(piece) / share for piece, share in zip(pieces, shares, strict=True))
    if n_chunks is not None:
        total = min(total, n_chunks)
    wanted = np.floor(total * shares + 1e-9).astype(int)
    # what rounding down left goes to the largest remainders
    for i in np.argsort(wanted - total * shares, kind="stable")[: int(total + 1e-9) - int(wanted.sum())]:
        wanted[i] = min(wanted[i] + 1, len(pieces[i]))
    return [piece[:n] for piece, n in zip(pieces, wanted, strict=True)]
