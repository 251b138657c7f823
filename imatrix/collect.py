"""Run a model over chunks of text and sum what enters its matrices.

    for progress in collect(model, table, chunks, settings, result): ...
    save(path, result.matrix(...))

The caller owns the model, its name table and what happens between batches: showing, saving, stopping.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from quantmill.gguf_io.convert.names import TensorTable
from quantmill.imatrix.matrix import ActivationError, ImportanceMatrix
from quantmill.imatrix.recorder import Recorder
from quantmill.imatrix.sums import Batch, Input, Sums, entries
from quantmill.models.scoring import token_nll
from quantmill.models.seen import require_known, seen_ids
from quantmill.models.walk import chunks_together
from quantmill.models.workers import ALONE, Tell, Workers

ACTIVATION_BYTES = 4 << 30  # of a batch on a GPU


@dataclass(frozen=True)
class Settings:
    """bos: token that replaces the first of every chunk, None where the model wants none
    process_output: also the output projection (of tied models: the embedding)
    perplexity: predict the second half of each chunk; with_means: also Σx
    route_all: show every expert every token; nextn: the model runs its layers that predict further tokens, too
    batch: chunks run together, None: by the model and the length of a chunk
    """

    bos: int | None = None
    process_output: bool = False
    perplexity: bool = True
    with_means: bool = False
    route_all: bool = False
    nextn: bool = False
    batch: int | None = None

    def recorder(self, table: TensorTable) -> Recorder:
        """What watches a model whose tensors have the table's names."""
        return Recorder(table, self.with_means, self.process_output, self.route_all)


@dataclass(frozen=True)
class Progress:
    """After a batch. perplexity: of all chunks so far, with its error; None when not asked for."""

    n_done: int
    n_chunks: int
    n_tokens: int
    seconds: float
    perplexity: tuple[float, float] | None


@dataclass(frozen=True)
class Done:
    """What the chunks that are done came to: sums by the name of their place, negative log-likelihood of the scored
    tokens, its squares."""

    n_chunks: int = 0
    nll: float = 0.0
    nll2: float = 0.0
    n_scored: int = 0
    sums: Mapping[str, Sums] = field(default_factory=dict)

    def scored(self, nll: np.ndarray | None) -> Done:
        """With what run_batch gives of a batch."""
        if nll is None:
            return self
        return replace(
            self,
            nll=self.nll + float(nll.sum()),
            nll2=self.nll2 + float((nll * nll).sum()),
            n_scored=self.n_scored + nll.size,
        )


@dataclass
class Result:
    """What has been collected so far. done: replaced as a whole, so that an interrupt finds all of a batch or nothing;
    inputs: the places that the sums were taken at, of the running model."""

    done: Done = Done()
    inputs: Sequence[Input] = ()

    @property
    def n_done(self) -> int:
        return self.done.n_chunks

    def matrix(self, datasets: tuple[str, ...], n_ctx: int) -> ImportanceMatrix:
        """The importance matrix of the chunks done."""
        return ImportanceMatrix(entries(self.inputs, self.done.sums), datasets, self.n_done, n_ctx)

    def perplexity(self) -> tuple[float, float] | None:
        """Value and standard error, as llama-imatrix prints them (tools/imatrix/imatrix.cpp)."""
        done = self.done
        if not done.n_scored:
            return None
        mean = done.nll / done.n_scored
        variance = done.nll2 / done.n_scored - mean * mean
        error = math.sqrt(variance / (done.n_scored - 1)) if variance > 0 and done.n_scored > 1 else 0.0
        value = math.exp(mean) if mean < 700 else math.inf
        return value, value * error


def collect(
    model: Any,
    table: TensorTable,
    chunks: np.ndarray,
    settings: Settings,
    result: Result,
    workers: Workers = ALONE,
) -> Iterator[Progress]:
    """Run `model` over chunks [n_chunk, n_ctx] i32 from result.n_done on; `result` grows batch by batch.

    table: gguf_io.convert's names of this model's tensors. A batch counts when it is complete and its turn has come:
    whatever ends the loop, `result` holds whole batches, and how many are run side by side does not show. Raises
    ImatrixError for an activation that is not finite (naming the tensor and the chunk) or a model in which nothing can
    be watched, ModelError for a token outside the vocabulary.
    """
    check_tokens(model, chunks, settings)
    device = _device(model)
    n_chunk, n_ctx = chunks.shape
    step = settings.batch or together(model, n_chunk, n_ctx, device)
    recorder = settings.recorder(table)
    begin, n_before = time.perf_counter(), result.n_done
    try:
        recorder.attach(model, result.done.sums)
        result.inputs = recorder.inputs

        def one(batch: np.ndarray, tell: Tell) -> tuple[np.ndarray, np.ndarray | None, dict[int, Batch]]:
            nll = run_batch(model, batch, settings, device)
            return batch, nll, recorder.taken()

        left = [chunks[first : first + step] for first in range(n_before, n_chunk, step)]
        for batch, nll, sums in workers.in_order(one, left):
            if recorder.bad_input(sums) is not None:
                raise _not_finite(model, batch, result.n_done, settings, recorder, device)
            after = result.done.scored(nll)
            total = recorder.with_batch(after.sums, sums)
            result.done = replace(after, n_chunks=after.n_chunks + len(batch), sums=total)
            n_tokens = (result.n_done - n_before) * n_ctx
            yield Progress(result.n_done, n_chunk, n_tokens, time.perf_counter() - begin, result.perplexity())
    finally:
        recorder.detach()


def token_ids(batch: np.ndarray, settings: Settings) -> torch.Tensor:
    """batch [n_seq, n_ctx] → what the model sees, i64."""
    return seen_ids(batch, settings.bos)


@torch.inference_mode()
def run_batch(model: Any, batch: np.ndarray, settings: Settings, device: torch.device) -> np.ndarray | None:
    """batch [n_seq, n_ctx] → −log p of the scored tokens, [n] f64, or None without perplexity."""
    targets = torch.from_numpy(batch.astype(np.int64))
    tokens = token_ids(batch, settings)
    n_ctx = tokens.shape[1]
    first = n_ctx // 2
    arguments: dict[str, Any] = {"input_ids": tokens.to(device), "use_cache": False}
    takes_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    if takes_keep and not settings.process_output:  # the output projection counts every position
        # Places, not a number: for a number Gemma runs its last layers on these tokens only.
        kept = range(first if settings.perplexity else n_ctx - 1, n_ctx)
        arguments["logits_to_keep"] = torch.tensor(kept, device=device)
    logits = model(**arguments).logits
    if not settings.perplexity:
        return None
    scored = logits[:, -(n_ctx - first) : -1]
    return token_nll(scored.reshape(-1, scored.shape[-1]), targets[:, first + 1 :].reshape(-1).to(device))


def _not_finite(
    model: Any,
    batch: np.ndarray,
    n_done: int,
    settings: Settings,
    recorder: Recorder,
    device: torch.device,
) -> ActivationError:
    """Which chunk of the batch it was: run them one by one."""
    tensor, number = None, n_done
    for i in range(len(batch)):
        run_batch(model, batch[i : i + 1], settings, device)
        tensor = recorder.bad_input(recorder.taken())
        if tensor is not None:
            number += i
            break
    return not_finite(tensor, f"chunk {number + 1}")


def not_finite(tensor: str | None, where: str) -> ActivationError:
    return ActivationError(
        f"{tensor}: the activations that enter it are not finite in {where}; the model or its weights overflow: try "
        "--dtype float32, or look at the text of that chunk"
    )


def check_tokens(model: Any, chunks: np.ndarray, settings: Settings) -> None:
    require_known(chunks, settings.bos, model.get_input_embeddings().num_embeddings)


def _device(model: Any) -> torch.device:
    """Where the model runs, which is not where its weights are when accelerate brings them there in turn."""
    embedding = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    return embedding.weight.device if hook is None else torch.device(hook.execution_device)


def together(model: Any, n_chunk: int, n_ctx: int, device: torch.device) -> int:
    """Chunks to run together: on a CPU 2048 tokens, or fewer so that threads share them; on a GPU what
    ACTIVATION_BYTES hold.

    Never by free memory or threads: sums of another grouping round otherwise, and the same command is to give the same
    file.
    """
    if device.type != "cuda":
        return chunks_together("cpu", n_chunk, n_ctx)
    config = model.config.get_text_config()
    # float32 logits twice, and some twenty hidden states and four intermediate ones alive at a time
    per_token = 8 * config.vocab_size + 4 * (
        20 * config.hidden_size + 4 * getattr(config, "intermediate_size", 0)
    )
    return max(1, min(64, ACTIVATION_BYTES // (per_token * n_ctx)))
