"""The passes of an evaluation over its text and its tasks; what is finished is saved and not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from quantmill.jobs.saved import Saved
from quantmill.jobs.watcher import Watcher
from quantmill.measure import compare
from quantmill.measure.divergence import TokenScores
from quantmill.measure.logits_file import LogitsFile, LogitsWriter
from quantmill.measure.task_files import Kind, Task
from quantmill.measure.tasks import Scored, TaskResult, score
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import batches, input_ids, scored_logits, targets, token_nll
from quantmill.models.streamed import StreamedModel
from quantmill.models.workers import Tell, Workers

_STOP, _BASE = "stop", "base"
_FIELDS = tuple(field.name for field in fields(TokenScores))


def divergences(
    base: LoadedModel | LogitsFile,
    quants: Sequence[LoadedModel],
    chunks: np.ndarray,
    writers: Sequence[LogitsWriter],
    saved: Saved,
    watcher: Watcher,
    workers: Workers,
) -> compare.Pass:
    """All quants against the base, batch by batch. writers: not for chunks that were scored before."""
    found = _begun(saved.part("text"), len(quants))
    first = found[-1].stop if found else 0
    models = [*([base] if isinstance(base, LoadedModel) else []), *quants]
    n_models = len(models)
    take_through_layers(models, chunks, first, watcher, workers)
    watcher.began("perplexity", n_models * chunks.size, "tokens")
    watcher.progressed(n_models * first * chunks.shape[1])
    with _saving(saved, "text", lambda: _arrays(found)) as keep:
        told = watcher.progressed
        for batch in compare.run_batches(base, quants, chunks, writers, told, first, workers):
            found.append(batch)
            keep()
    return compare.joined(found)


def _begun(arrays: Mapping[str, np.ndarray], n_quants: int) -> list[compare.Batch]:
    if not arrays:
        return []
    scores = tuple(TokenScores(*(arrays[f"{i}.{name}"] for name in _FIELDS)) for i in range(n_quants))
    return [compare.Batch(int(arrays[_STOP]), arrays.get(_BASE), scores)]


def _arrays(found: Sequence[compare.Batch]) -> dict[str, np.ndarray]:
    if not found:
        return {}
    done = compare.joined(found)
    arrays = {
        f"{i}.{name}": getattr(scores, name) for i, scores in enumerate(done.scores) for name in _FIELDS
    }
    base = {} if found[0].base_nll is None else {_BASE: done.base_nll}
    return {_STOP: np.array(found[-1].stop), **base, **arrays}


def alone(
    models: Sequence[LoadedModel], chunks: np.ndarray, saved: Saved, watcher: Watcher, workers: Workers
) -> list[np.ndarray]:
    """−log p of the text's scored tokens under each model, one model after the other."""
    if not any(isinstance(model, StreamedModel) for model in models):
        watcher.began("perplexity", len(models) * chunks.size, "tokens")
    return [
        _alone(f"alone {i}", model, chunks, saved, watcher, workers.of(i)) for i, model in enumerate(models)
    ]


def _alone(
    name: str, model: LoadedModel, chunks: np.ndarray, saved: Saved, watcher: Watcher, workers: Workers
) -> np.ndarray:
    before = saved.part(name)
    done = [(int(before[_STOP]), before["nll"])] if before else []
    first = done[-1][0] if done else 0
    if take_through_layers([model], chunks, first, watcher, workers):
        watcher.began("perplexity", chunks.size, "tokens")
    watcher.progressed(first * chunks.shape[1], model.path.name)

    def arrays() -> dict[str, np.ndarray]:
        if not done:
            return {}
        return {_STOP: np.array(done[-1][0]), "nll": np.concatenate([nll for _, nll in done])}

    def one(item: tuple[slice, np.ndarray], tell: Tell) -> tuple[int, np.ndarray]:
        found = nll_of(model, *item)
        tell(item[1].size)
        return found

    cuts = batches(chunks.shape[0], chunks.shape[1], model.n_vocab)
    left = [(batch, chunks[batch]) for batch in cuts if batch.start >= first]
    with _saving(saved, name, arrays) as keep:
        for found in workers.in_order(one, left, lambda n: watcher.progressed(n, model.path.name)):
            done.append(found)
            keep()
    return np.concatenate([nll for _, nll in done])


def nll_of(model: LoadedModel, batch: slice, chunks: np.ndarray) -> tuple[int, np.ndarray]:
    """Where a batch ends in the text, and −log p of the scored tokens of its chunks [n_seq, n_ctx]."""
    wanted = torch.from_numpy(targets(chunks).astype(np.int64))
    pairs = zip(scored_logits(model, chunks), wanted, strict=True)
    return batch.stop, np.concatenate([token_nll(rows, target.to(rows.device)) for rows, target in pairs])


def take_through_layers(
    models: Sequence[LoadedModel], chunks: np.ndarray, first: int, watcher: Watcher, workers: Workers
) -> bool:
    """Those whose layers are read one at a time, with the batches from chunk `first` on; whether there are any."""
    streamed = [model for model in models if isinstance(model, StreamedModel)]
    if streamed:
        watcher.began("layers", sum(model.n_layers for model in streamed), "layers")
    for model in streamed:
        left = [
            batch
            for batch in batches(chunks.shape[0], chunks.shape[1], models[0].n_vocab)
            if batch.start >= first
        ]
        model.prepare([input_ids(model, chunks[batch]) for batch in left], watcher.progressed, workers)
    return bool(streamed)


@contextmanager
def _saving(
    saved: Saved, name: str, arrays: Callable[[], Mapping[str, np.ndarray]]
) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step; however the steps end, what they have done is saved."""

    def keep() -> None:
        if saved.is_due:
            saved.put(name, arrays())
            saved.keep()

    try:
        yield keep
    finally:
        saved.put(name, arrays())
        saved.keep()


def task_results(
    i: int,
    model: LoadedModel,
    jobs: Sequence[tuple[str, Kind, Sequence[Task]]],
    n_ctx: int,
    saved: Saved,
    watcher: Watcher,
    workers: Workers,
) -> list[TaskResult]:
    """Model number `i` on each file of tasks (name, kind, tasks); saved after each."""
    out = []
    for name, kind, tasks in jobs:
        key = f"task {i} {name}"
        found = saved.facts.get(key)
        if found is None:
            watcher.began(f"{kind} {model.path.name}", len(tasks), "tasks")
            result = score(model, kind, tasks, n_ctx, watcher.progressed, workers)
            saved.facts[key] = _facts(result)
            saved.keep()
        else:
            result = _result(kind, found)
        out.append(result)
    return out


def _facts(result: TaskResult) -> dict[str, Any]:
    return {"chance": result.chance, "scored": [[one.means, one.taken, one.right] for one in result.scored]}


def _result(kind: Kind, facts: Mapping[str, Any]) -> TaskResult:
    scored = tuple(Scored(tuple(means), taken, right) for means, taken, right in facts["scored"])
    return TaskResult(kind, scored, facts["chance"])


def harness_metrics(i: int, run: Callable[[], dict[str, float]], saved: Saved) -> dict[str, float]:
    """What EleutherAI's harness says of model number `i`; saved after it."""
    key = f"harness {i}"
    if key not in saved.facts:
        saved.facts[key] = run()
        saved.keep()
    found: dict[str, float] = saved.facts[key]
    return found
