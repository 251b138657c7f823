"""Collection from a model whose layers are read one at a time: all chunks pass a layer before the next is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from quantmill.gguf_io.convert.names import TensorTable
from quantmill.imatrix.collect import (
    Done,
    Progress,
    Result,
    Settings,
    check_tokens,
    not_finite,
    run_batch,
    together,
    token_ids,
)
from quantmill.imatrix.recorder import Recorder
from quantmill.imatrix.sums import Batch
from quantmill.models.streamed import StreamedModel
from quantmill.models.workers import ALONE, Tell, Workers


def collect_streamed(
    loaded: StreamedModel,
    table: TensorTable,
    chunks: np.ndarray,
    settings: Settings,
    result: Result,
    workers: Workers = ALONE,
    layer_done: Callable[[], None] = lambda: None,
) -> Iterator[Progress]:
    """As collect.collect, with the same sums, from result.n_done on; all chunks are complete at once, at the end.

    Raises as it does; of an activation that is not finite the tensor is named, and the chunks that ran together.
    """
    check_tokens(loaded.model, chunks, settings)
    step = settings.batch or together(loaded.model, chunks.shape[0], chunks.shape[1], loaded.device)
    first = result.n_done
    batches = [chunks[begin : begin + step] for begin in range(first, len(chunks), step)]
    recorder = settings.recorder(table)
    done = result.done
    began = time.perf_counter()
    for name, take in loaded.layers([token_ids(batch, settings) for batch in batches]):

        def one(
            number: int, tell: Tell, take: Callable[[int], object] = take
        ) -> tuple[int, dict[int, Batch]]:
            take(number)
            return number, recorder.taken()

        recorder.attach_part(loaded.model, f"{name}.")
        try:
            for number, sums in workers.in_order(one, range(len(batches))):
                done = _with(done, recorder, sums, first + number * step, len(batches[number]))
        finally:
            recorder.detach()
        layer_done()
    recorder.require_places(loaded.model)
    done = _read_out(loaded, batches, settings, done, recorder, workers)
    recorder.require_places(loaded.model, done.sums)
    result.inputs = recorder.inputs
    result.done = replace(done, n_chunks=len(chunks))
    n_tokens = (len(chunks) - first) * chunks.shape[1]
    seconds = time.perf_counter() - began
    yield Progress(result.n_done, len(chunks), n_tokens, seconds, result.perplexity())


def _read_out(
    loaded: StreamedModel,
    batches: list[np.ndarray],
    settings: Settings,
    done: Done,
    recorder: Recorder,
    workers: Workers,
) -> Done:
    """What lies behind the layers: the output projection, where it is wanted, and the perplexity."""
    if not settings.perplexity and not settings.process_output:
        loaded.states.clear()
        return done
    if settings.process_output:
        recorder.attach_output(loaded.model)

    def one(batch: np.ndarray, tell: Tell) -> tuple[np.ndarray | None, dict[int, Batch]]:
        with loaded.behind(token_ids(batch, settings)):
            nll = run_batch(loaded.model, batch, settings, loaded.device)
        return nll, recorder.taken()

    first = done.n_chunks
    try:
        for batch, (nll, sums) in zip(batches, workers.in_order(one, batches), strict=True):
            done = _with(done.scored(nll), recorder, sums, first, len(batch))
            first += len(batch)
    finally:
        recorder.detach()
    return done


def _with(done: Done, recorder: Recorder, sums: dict[int, Batch], first: int, n: int) -> Done:
    tensor = recorder.bad_input(sums)
    if tensor is not None:
        raise not_finite(
            tensor, f"chunk {first + 1}" if n == 1 else f"one of chunks {first + 1} to {first + n}"
        )
    return replace(done, sums=recorder.with_batch(done.sums, sums))
