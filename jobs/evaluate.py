"""One evaluation from options to record: load, score the text and the tasks, compare, describe the files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from quantmill.gguf_io.kinds import LOGITS
from quantmill.gguf_io.outputs import Output, check_output
from quantmill.jobs.cluster import require_listener
from quantmill.jobs.comparisons import divergence_tests, task_tests
from quantmill.jobs.evaluate_request import Job, TaskJob
from quantmill.jobs.going_on import telling
from quantmill.jobs.machine import machine, now
from quantmill.jobs.passes import alone, divergences, harness_metrics, task_results
from quantmill.jobs.runnable import require_runnable
from quantmill.jobs.saved import SAVED, Saved, identity_of, saved_path
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure import compare
from quantmill.measure.divergence import TokenScores, summarize
from quantmill.measure.harness import require_harness, run_harness
from quantmill.measure.logits_file import LogitsFile, LogitsWriter, finish
from quantmill.measure.perplexity import perplexity
from quantmill.measure.record import (
    ModelFile,
    ModelResult,
    Run,
    TaskScore,
    TextInfo,
    describe,
    digest,
    kind_of_record,
    named,
    write_record,
)
from quantmill.measure.task_files import read_tasks, unasked
from quantmill.measure.tasks import TaskResult, prepared
from quantmill.models.arithmetic import automatic_dtype
from quantmill.models.devices import usable_device
from quantmill.models.model import LoadedModel, load
from quantmill.models.scoring import LEAST_BATCHES, cut, targets
from quantmill.models.streamed import load_streamed
from quantmill.models.text import read_text_and_digest
from quantmill.models.workers import Workers, working


def run(job: Job, watcher: Watcher | None = None) -> Run:
    """Run the evaluation and write its record. Raises MeasureError, GGUFError or OSError with one plain line.

    What an interrupt or an error finds finished is kept (see Job); the interrupt says where.
    """
    watcher = watcher or Silent()
    if job.dtype == "auto":
        job = replace(job, dtype=automatic_dtype(usable_device(job.device)))
    output, saves = _outputs(job)
    if job.lm_eval:
        require_harness()
    saved = Saved(saved_path(output.final) if output else None, _identity(job), job.resume, watcher.warn)
    with telling(lambda: saved.advice):
        record = _measured(job, output, saves, saved, watcher)
    if output is not None:
        write_record(record, output)
    saved.remove()
    return record


def _outputs(job: Job) -> tuple[Output | None, dict[str, Output]]:
    """Places of the record and of saved predictions ("logits", "base"), checked before the work."""
    read = (*job.models, job.base, job.base_file, job.text, job.tokenizer, *(task.path for task in job.tasks))
    inputs = [path for path in read if path is not None]
    output = None
    if job.output is not None:
        output = check_output(job.output, kind_of_record(job.output), inputs, force=job.force)
        check_output(saved_path(output.final), SAVED, inputs)
    saves: dict[str, Output] = {}
    for name, path in (("logits", job.save_logits), ("base", job.save_base)):
        if path is not None:
            others = [*([output] if output else []), *saves.values()]
            saves[name] = check_output(path, LOGITS, inputs, force=job.force, others=others)
    return output, saves


def _identity(job: Job) -> str:
    kept = {"output", "resume", "force", "command", "version", "threads", "save_logits", "save_base", "ray"}
    options = {name: value for name, value in asdict(job).items() if name not in kept}
    options["batches"] = LEAST_BATCHES  # where a batch ends, a stopped run is gone on with
    paths = (*job.models, job.base, job.base_file, job.text, *(task.path for task in job.tasks))
    return identity_of(options, [path for path in paths if path is not None])


def _measured(
    job: Job, output: Output | None, saves: dict[str, Output], saved: Saved, watcher: Watcher
) -> Run:
    # Everything that can be wrong with a file, or an address, is found before a model runs.
    if job.ray is not None:
        require_listener(job.ray)
    tasks = [(task.name, task.kind, read_tasks(task.path, task.kind, job.n_tasks)) for task in job.tasks]
    base_file = LogitsFile(job.base_file) if job.base_file else None
    device = usable_device(job.device)
    paths = ([job.base] if job.base else []) + list(job.models)
    for path in paths:
        require_runnable(path)
    with ExitStack() as opened:
        loaded = []
        for path in paths:
            loading = load_streamed if job.stream else load
            loaded.append(loading(path, str(device), job.dtype, job.tokenizer))
            opened.callback(loaded[-1].close)
        for _, kind, found in tasks:
            prepared(loaded[0], kind, found, job.n_ctx or 512)
        for warning in (line for one in (output, *saves.values()) if one for line in one.warnings):
            watcher.warn(warning)
        base, quants = (loaded[0], loaded[1:]) if job.base else (None, loaded)
        workers = opened.enter_context(_workers(job, paths, device.type, watcher))
        for model in loaded:
            opened.enter_context(workers.ending(model.model))
        results, text, scores = _text(job, base, base_file, quants, saves, saved, watcher, workers)
        n_ctx = job.n_ctx or 512
        scored = [task_results(i, one, tasks, n_ctx, saved, watcher, workers) for i, one in enumerate(loaded)]
        harness = [_harness(i, model, job, saved, workers) for i, model in enumerate(loaded)]
        arithmetic = " and ".join(dict.fromkeys(model.arithmetic for model in loaded))
    files = named([describe(path) for path in paths])
    results = [
        replace(result, file=file, tasks=tuple(map(_task_score, job.tasks, found)), lm_eval=metrics)
        for result, file, found, metrics in zip(results, files, scored, harness, strict=True)
    ]
    names = [file.name for file in files][len(paths) - len(quants) :]
    n_chunks = text.n_chunks if text else 0
    return Run(
        version=job.version,
        command=job.command,
        date=now(),
        machine=machine(str(device)),
        device=f"{device}, {arithmetic}",
        models=tuple(results[1:] if job.base else results),
        base=results[0] if job.base else None,
        text=text,
        ranking=tuple(names[rank.index] for rank in compare.ranking(scores, n_chunks)),
        comparisons=(
            *divergence_tests(names, [one.kld for one in scores], n_chunks),
            *task_tests([file.name for file in files], [task.name for task in job.tasks], scored),
        ),
        notes=(
            *(["weights were read layer by layer (--stream)"] if job.stream else []),
            *filter(None, (unasked(task.path, task.kind) for task in job.tasks)),
        ),
    )


def _workers(
    job: Job, paths: Sequence[Path], device: str, watcher: Watcher
) -> AbstractContextManager[Workers]:
    if job.ray is None:
        return working(job.threads, device)
    from quantmill.jobs.evaluate_on_ray import scoring_on_ray  # nobody else needs it

    has_base = job.base is not None
    return scoring_on_ray(
        job.ray, job.threads, paths, has_base, job.base_file, device, job.dtype, job.tokenizer, watcher
    )


NOTHING = ModelFile("", "", 0, 0, 0.0, "", "", ())


def _text(
    job: Job,
    base: LoadedModel | None,
    base_file: LogitsFile | None,
    quants: Sequence[LoadedModel],
    saves: dict[str, Output],
    saved: Saved,
    watcher: Watcher,
    workers: Workers,
) -> tuple[list[ModelResult], TextInfo | None, tuple[TokenScores, ...]]:
    """Results without files, base first; the text; token scores of the quants."""
    against = base or base_file
    if against is None and job.text is None:
        return [ModelResult(NOTHING)] * len(quants), None, ()
    if base_file is None and job.text is None:
        return [ModelResult(NOTHING)] * (len(quants) + 1), None, ()
    chunks, source, sha256 = _chunks(job, base, base_file, quants)
    info = TextInfo(str(source), sha256, chunks.shape[1], chunks.shape[0], targets(chunks).size)
    if against is None:
        found = alone(quants, chunks, saved, watcher, workers)
        return [ModelResult(NOTHING, perplexity(nll)) for nll in found], info, ()
    if saves:
        saved.forget("text")  # what is saved of the base's predictions is all of them or none
    with ExitStack() as stack:
        writers = [stack.enter_context(writer) for writer in _writers(job, saves, chunks, against)]
        passed = divergences(against, quants, chunks, writers, saved, watcher, workers)
        finish(writers)
    results = [ModelResult(NOTHING, perplexity(passed.base_nll))] if base else []
    for scores in passed.scores:
        summary = summarize(scores)
        by_chunk = scores.kld.reshape(passed.n_chunks, -1).mean(axis=1)
        results.append(ModelResult(NOTHING, summary.ppl, summary, tuple(by_chunk.tolist())))
    return results, info, passed.scores


def _chunks(
    job: Job, base: LoadedModel | None, base_file: LogitsFile | None, quants: Sequence[LoadedModel]
) -> tuple[np.ndarray, Path, str]:
    """[n_chunk, n_ctx] i32 tokens, the file that they come from and its sha256."""
    if base_file is not None:
        compare.check_base_file(base_file, quants, job.n_ctx)
        return base_file.tokens[: job.chunks], base_file.path, digest([base_file.path])
    assert job.text is not None
    first = base or quants[0]
    words, sha256 = read_text_and_digest(job.text)
    compare.check_vocabularies(first, quants, words)
    tokens = first.tokenizer.encode(words, parse_special=job.parse_special)
    return cut(tokens, job.n_ctx or 512, job.chunks), job.text, sha256


def _writers(
    job: Job, saves: dict[str, Output], chunks: np.ndarray, base: LoadedModel | LogitsFile
) -> Iterator[LogitsWriter]:
    if isinstance(base, LoadedModel):
        for name, output in saves.items():
            yield LogitsWriter(output.final, chunks, base.n_vocab, job.top_k if name == "base" else 0)


def _harness(i: int, model: LoadedModel, job: Job, saved: Saved, workers: Workers) -> dict[str, float] | None:
    if not job.lm_eval:
        return None
    n_ctx = job.n_ctx or 2048
    return harness_metrics(
        i, lambda: run_harness(model, job.lm_eval, n_ctx, job.lm_eval_limit, workers), saved
    )


def _task_score(job: TaskJob, found: TaskResult) -> TaskScore:
    right = tuple(one.right for one in found.scored)
    return TaskScore(job.name, str(job.path), digest([job.path]), found.accuracy, found.chance, right)
