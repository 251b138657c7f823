"""One polish from request to file: the original listens first, then the quantized model is trained, judged, written.

    result = run(Job(Path("model-Q4_0.gguf"), Path("model"), (Text(Path("text.txt")),)), watcher)

Chunks that are held back from training decide: where the trained model is not better on them, nothing is written.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from quantmill.calibrate.head import Divergence, Head, check_head
from quantmill.calibrate.student import Student, teacher_head
from quantmill.calibrate.teacher import HiddenStates, listen
from quantmill.calibrate.training import Training
from quantmill.errors import counted
from quantmill.gguf_io import GGUFSink, Metadata, OutputTensor, TensorSource, open_source
from quantmill.gguf_io.filesystem import beside, bytes_in
from quantmill.gguf_io.renaming import FinishedFile, rename_all
from quantmill.imatrix import chat
from quantmill.jobs.going_on import keeping, telling
from quantmill.jobs.polish_checks import (
    TRAINED_CTX,
    Chunks,
    check_base,
    check_trainable,
    chunks_of,
)
from quantmill.jobs.polish_facts import dtype_of, facts, identity, plan_of, plan_text, rates_of, with_facts
from quantmill.jobs.polish_memory import check_stream
from quantmill.jobs.polish_request import Job, Plan, Result, default_output
from quantmill.jobs.polish_scores import ACCEPTED, check_scores, scores_of
from quantmill.jobs.polish_state import Kept, kept_place
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure.divergence import TokenScores, paired_test, summarize
from quantmill.models.devices import usable_device
from quantmill.models.memory import share_heap, trim
from quantmill.models.model import LoadedModel, from_source
from quantmill.models.tokenizer import from_metadata
from quantmill.models.workers import Workers, working

__all__ = ["Job", "Plan", "Result", "plan_job", "polish_in_place", "run"]

LOOK_CHUNKS = 192  # trained on between two looks at the held-back chunks
IN_PLACE = ".quantmill-polished"  # of the file that takes the quant's place: a name that no user's file has


def plan_job(job: Job) -> Plan:
    """What `run` would do; reads headers, a few rows and the text."""
    with ExitStack() as stack:
        return _prepared(job, stack).plan


def run(job: Job, watcher: Watcher | None = None) -> Result:
    """Do the job.

    Raises JobError, GGUFError, ModelError, CalibrationError or OSError with one plain line. What was done of a run
    that was stopped is kept beside the output, for `resume`.
    """
    watcher = watcher or Silent()
    with ExitStack() as stack:
        ready = _prepared(job, stack)
        kept = Kept(
            ready.plan.output,
            identity(job, ready.quant, ready.base, ready.chunks, ready.dtype),
            job.resume,
            watcher.warn,
        )
        for warning in ready.plan.warnings:
            watcher.warn(warning)
        watcher.note(plan_text(ready.plan))
        share_heap()
        kind = usable_device(job.device).type
        workers = stack.enter_context(working(job.threads, kind))
        keepers = stack.enter_context(working(job.threads, "cpu")) if job.stream else workers
        with telling(lambda: kept.advice), keeping(lambda: kept.advice, kept.remove):
            return _polished(ready, kept, workers, keepers, watcher)


def polish_in_place(job: Job, watcher: Watcher | None = None) -> Result:
    """Polish a file that was just made, and put the better one in its place; where it is not better, it stays."""
    assert job.output is None
    result = run(replace(job, output=beside(job.quant, IN_PLACE)), watcher)
    if result.paths:
        quant = open_source(job.quant)
        old = quant.paths
        quant.close()
        with ExitStack() as made:
            files = [made.enter_context(FinishedFile(*pair)) for pair in zip(result.paths, old, strict=True)]
            rename_all(files[::-1])  # the first, the one that is opened, comes last
        result = replace(result, paths=old)
    return result


@dataclass(frozen=True)
class _Wanted:
    """What the original says of the chunks."""

    held_back: HiddenStates
    trained: HiddenStates


@dataclass(frozen=True)
class _Ready:
    """A job whose files are open and checked."""

    job: Job
    quant: TensorSource
    base: TensorSource
    chunks: Chunks
    dtype: torch.dtype
    plan: Plan
    inputs: tuple[Path, ...]


def _prepared(job: Job, stack: ExitStack) -> _Ready:
    quant, base = open_source(job.quant), open_source(job.base)
    stack.callback(quant.close)
    stack.callback(base.close)
    check_stream(job)
    check_trainable(job.quant, quant)
    check_base(quant, base)
    chunks = chunks_of(
        job.calibration,
        from_metadata(quant.metadata),
        lambda: chat.from_metadata(quant.metadata, str(job.quant)),
        job.n_chunks,
        job.skip_chunks,
        TRAINED_CTX,
    )
    inputs = (*quant.paths, *base.paths, job.base, *job.text_files)
    dtype = dtype_of(job, quant)
    output = job.output or default_output(job.quant)
    plan = plan_of(job, quant, base, chunks, dtype, output)
    to_keep = max(0, plan.kept_bytes - bytes_in(kept_place(output)))
    sink = _sink(job, quant, output, quant.metadata, inputs, to_keep)
    plan = replace(plan, warnings=(*sink.warnings, *plan.warnings))
    return _Ready(job, quant, base, chunks, dtype, plan, inputs)


def _polished(ready: _Ready, kept: Kept, workers: Workers, keepers: Workers, watcher: Watcher) -> Result:
    job, chunks = ready.job, ready.chunks
    head, matrix, wanted = _listened(ready, kept, workers, watcher)
    student = Student(_loaded(job, ready.quant, job.quant), ready.dtype, workers, keepers)
    divergence = Divergence(head, matrix, student.head, student.head_weight, workers)
    watcher.began("before", len(chunks.held_back), "chunks")
    before = scores_of(student, divergence, chunks.held_back, wanted.held_back, watcher)
    check_scores(job, before, len(chunks.held_back))
    rates = rates_of(job, ready.quant)
    student.start(rates, ready.base)
    _release(ready.quant)  # what moves has memory of its own now
    training = Training(student, divergence, rates, len(chunks.trained), job.n_epochs)
    kept.restore(training)
    after = _trained(training, chunks, wanted, kept, watcher)
    test = paired_test(after.kld, before.kld, len(chunks.held_back))
    first, last = summarize(before), summarize(after)
    paths: tuple[Path, ...] = ()
    if test.difference.value < 0 and test.p_value <= ACCEPTED:
        keys = facts(job, ready.quant, ready.base, chunks, ready.dtype, first, last, training)
        paths = _written(ready, student, with_facts(ready.quant.metadata, keys))
    kept.remove()
    return Result(ready.plan, first, last, test, tuple(training.losses), training.n_done, paths)


def _listened(
    ready: _Ready, kept: Kept, workers: Workers, watcher: Watcher
) -> tuple[Head, torch.Tensor, _Wanted]:
    """The original's head, the head's matrix, and its hidden states on all chunks; its weights are gone then."""
    chunks = ready.chunks
    loaded = _loaded(ready.job, ready.base, ready.job.base)
    head, matrix = teacher_head(loaded, ready.dtype)
    ids = torch.from_numpy(chunks.held_back[:1, :16].astype(np.int64)).to(loaded.device)
    check_head(loaded.model, head, matrix, ids)
    watcher.began("original", len(chunks.held_back) + len(chunks.trained), "chunks")
    parts = {"held-back": chunks.held_back, "trained": chunks.trained}
    heard = []
    for what, part in parts.items():
        heard.append(kept.hidden_states(what, part.shape[1], matrix.shape[1]))
        listen(loaded.model, part, heard[-1], str(ready.job.base), workers, watcher.progressed)
    del loaded
    gc.collect()
    _release(ready.base)
    return head, matrix, _Wanted(*heard)


def _release(source: TensorSource) -> None:
    for spec in source.specs():
        source.release(spec.name)
    trim()


def _trained(
    training: Training, chunks: Chunks, wanted: _Wanted, kept: Kept, watcher: Watcher
) -> TokenScores:
    """Train, and go back to the best that was seen on the way; the held-back chunks' scores then."""

    def scores(what: str) -> TokenScores:
        watcher.began(what, len(chunks.held_back), "chunks")
        return scores_of(training.student, training.divergence, chunks.held_back, wanted.held_back, watcher)

    _train(
        training, chunks.trained, wanted.trained, kept, watcher, lambda: float(scores("held back").kld.mean())
    )
    training.settle()
    after = scores("after")
    if training.looks and min(training.looks) < float(after.kld.mean()):
        training.back_to_best()
        training.settle()
        after = scores("after")
    return after


def _train(
    training: Training,
    chunks: np.ndarray,
    wanted: HiddenStates,
    kept: Kept,
    watcher: Watcher,
    look: Callable[[], float],
) -> None:
    """All chunks, or as many as `look` at the held-back ones, every LOOK_CHUNKS, says are worth while."""
    watcher.began("training", len(training.order), "chunks")
    watcher.progressed(training.n_done)
    try:
        while training.n_done < len(training.order):
            if training.n_done // LOOK_CHUNKS > len(training.looks):
                training.looked(look())
                watcher.began("training", len(training.order), "chunks")
                watcher.progressed(training.n_done)
            if not training.improves:
                watcher.note(
                    f"stopped after {counted(training.n_done, 'chunk')}: the held-back chunks no longer improve"
                )
                break
            before = training.n_done
            training.step(chunks, wanted)
            recent = training.losses[-16:]
            watcher.progressed(
                training.n_done - before, f"KLD {sum(recent) / len(recent):.4f} before training on it"
            )
            kept.save(training)
    except KeyboardInterrupt:
        if training.between_steps:  # else what was saved last counts
            kept.save(training, soon=True)
        raise
    kept.save(training, soon=True)  # writing the file may fail


def _written(ready: _Ready, student: Student, metadata: Metadata) -> tuple[Path, ...]:
    """The file again, with the bytes of what was trained in their places."""
    quant, changed = ready.quant, student.changed_tensors()
    with _sink(ready.job, quant, ready.plan.output, metadata, ready.inputs) as sink:
        for spec in quant.specs():
            data = changed.get(spec.name)
            sink.write(spec.name, quant.read(spec.name) if data is None else np.ascontiguousarray(data))
            quant.release(spec.name)
        sink.commit()
    return sink.paths


def _sink(
    job: Job,
    quant: TensorSource,
    output: Path,
    metadata: Metadata,
    inputs: tuple[Path, ...],
    kept_bytes: int = 0,
) -> GGUFSink:
    tensors = [OutputTensor(spec.name, spec.shape, spec.type, spec.shard) for spec in quant.specs()]
    split, force = len(quant.paths) > 1, job.force
    return GGUFSink(
        output, metadata, tensors, keep_split=split, inputs=inputs, force=force, kept_bytes=kept_bytes
    )


def _loaded(job: Job, source: TensorSource, path: Path) -> LoadedModel:
    blocks_on = torch.device("cpu") if job.stream else None
    return from_source(source, path, usable_device(job.device), torch.float32, blocks_on=blocks_on)
