"""One evaluation from options to record: load, score the text and the tasks, compare, describe the files."""

from __future__ import annotations

import datetime
import itertools
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from quantmill.measure import compare
from quantmill.measure.divergence import TokenScores, paired_test, summarize
from quantmill.measure.errors import MeasureError
from quantmill.measure.harness import run_harness
from quantmill.measure.logits_file import TOP_K, LogitsFile, LogitsWriter
from quantmill.measure.perplexity import perplexity
from quantmill.measure.record import (
    Comparison,
    ModelFile,
    ModelResult,
    Run,
    TaskScore,
    TextInfo,
    describe,
    digest,
    named,
)
from quantmill.measure.task_files import Kind, Task, read_tasks, unasked
from quantmill.measure.tasks import TaskResult, mcnemar, prepared, score
from quantmill.models.model import LoadedModel, load
from quantmill.models.scoring import batches, cut, scored_logits, targets, token_nll
from quantmill.models.text import read_text

Advance = Callable[[int], None]
Bar = Callable[[str, int], AbstractContextManager[Advance]]  # (what, how many tokens or tasks)


@contextmanager
def no_bar(what: str, total: int) -> Iterator[Advance]:
    yield lambda done: None


@dataclass(frozen=True)
class TaskJob:
    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """Several multiple-choice files tell themselves apart by their names."""
        return self.path.stem if self.kind == "multiple-choice" else self.kind


@dataclass(frozen=True)
class Options:
    """What `quantmill evaluate` was asked for. n_ctx None: 512, or what the base file was made with.

    base: a model, or base_file: its saved predictions. save_logits, save_base: write the base's predictions in
    llama.cpp's or the compact format with top_k entries a position. n_tasks None: all tasks of a file.
    """

    models: tuple[Path, ...]
    base: Path | None = None
    base_file: Path | None = None
    text: Path | None = None
    n_ctx: int | None = None
    chunks: int | None = None
    parse_special: bool = False
    save_logits: Path | None = None
    save_base: Path | None = None
    top_k: int = TOP_K
    tasks: tuple[TaskJob, ...] = ()
    n_tasks: int | None = None
    lm_eval: tuple[str, ...] = ()
    lm_eval_limit: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if self.base is not None and self.base_file is not None:
            raise MeasureError(
                "give the base as a model (--base) or as saved predictions (--base-file), not both"
            )
        if not self.models and self.base is None:
            raise MeasureError("no model to evaluate: give GGUF files, or --base with what to save")
        if self.text is None and self.base_file is None and not (self.tasks or self.lm_eval):
            raise MeasureError("nothing to measure: give --text, --base-file or tasks")
        if (self.save_logits or self.save_base) and (self.base is None or self.text is None):
            raise MeasureError("saving predictions needs --base and --text")
        numbers = {
            "--ctx": self.n_ctx,
            "--chunks": self.chunks,
            "--top-k": self.top_k,
            "--threads": self.threads,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise MeasureError(f"{name} {value}: must be at least 1")
        if self.base_file is not None and self.text is not None:
            raise MeasureError("--base-file holds its own tokens; leave out --text")


def evaluate(options: Options, command: str, version: str, bar: Bar = no_bar) -> Run:
    """Run the evaluation. Raises MeasureError, GGUFError or OSError with one plain line."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Everything that can be wrong with a file is found before a model runs.
    jobs = [(job, read_tasks(job.path, job.kind, options.n_tasks)) for job in options.tasks]
    base_file = LogitsFile(options.base_file) if options.base_file else None
    paths = ([options.base] if options.base else []) + list(options.models)
    loaded = [load(path, options.device, options.dtype, options.tokenizer) for path in paths]
    base, quants = (loaded[0], loaded[1:]) if options.base else (None, loaded)
    for job, tasks in jobs:
        prepared(loaded[0], job.kind, tasks, options.n_ctx or 512)
    results, text, scores = _text(options, base, base_file, quants, bar)
    scored = [_tasks(model, jobs, options, bar) for model in loaded]
    harness = [_harness(model, options) for model in loaded]
    files = named([describe(path) for path in paths])
    results = [
        replace(result, file=file, tasks=tuple(_task_score(*one) for one in found), lm_eval=metrics)
        for result, file, found, metrics in zip(results, files, scored, harness, strict=True)
    ]
    for model in loaded:
        model.close()
    names = [file.name for file in files][len(loaded) - len(quants) :]
    n_chunks = text.n_chunks if text else 0
    ranks = compare.ranking(scores, n_chunks)
    return Run(
        version=version,
        command=command,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine=machine(options.device),
        device=f"{options.device}, {options.dtype}",
        models=tuple(results[1:] if base else results),
        base=results[0] if base else None,
        text=text,
        ranking=tuple(names[rank.index] for rank in ranks),
        comparisons=(
            *_divergence_tests(names, scores, n_chunks),
            *_task_tests([file.name for file in files], scored),
        ),
        notes=tuple(filter(None, (unasked(job.path, job.kind) for job in options.tasks))),
    )


def machine(device: str) -> str:
    """Processor, or the GPU's name, and versions that numbers may depend on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return f"{name}; Python {platform.python_version()}, torch {torch.__version__}, {sys.platform}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


NOTHING = ModelFile("", "", 0, 0, 0.0, "", "", ())


def _text(
    options: Options,
    base: LoadedModel | None,
    base_file: LogitsFile | None,
    quants: Sequence[LoadedModel],
    bar: Bar,
) -> tuple[list[ModelResult], TextInfo | None, tuple[TokenScores, ...]]:
    """Results without files, base first; the text; token scores of the quants."""
    n_models = len(quants) + (base is not None)
    if base_file is not None:
        compare.check_base_file(base_file, quants, options.n_ctx)
        chunks = base_file.tokens[: options.chunks]
        source, sha = base_file.path, digest([base_file.path])
    elif options.text is not None:
        first = base or quants[0]
        words = read_text(options.text)
        compare.check_vocabularies(first, quants, words)
        tokens = first.tokenizer.encode(words, parse_special=options.parse_special)
        chunks = cut(tokens, options.n_ctx or 512, options.chunks)
        source, sha = options.text, digest([options.text])
    else:
        return [ModelResult(NOTHING)] * n_models, None, ()
    info = TextInfo(str(source), sha, chunks.shape[1], chunks.shape[0], targets(chunks).size)
    with bar("perplexity", n_models * chunks.size) as advance:
        against = base or base_file
        if against is None:
            alone = [_alone(quant, chunks, advance) for quant in quants]
            return [ModelResult(NOTHING, perplexity(nll)) for nll in alone], info, ()
        with ExitStack() as stack:
            writers = [stack.enter_context(writer) for writer in _writers(options, chunks, against)]
            found = compare.run(against, quants, chunks, writers, advance)
    results = [ModelResult(NOTHING, perplexity(found.base_nll))] if base else []
    for scores in found.scores:
        summary = summarize(scores)
        by_chunk = scores.kld.reshape(found.n_chunks, -1).mean(axis=1)
        results.append(ModelResult(NOTHING, summary.ppl, summary, tuple(by_chunk.tolist())))
    return results, info, found.scores


def _writers(options: Options, chunks: np.ndarray, base: LoadedModel | LogitsFile) -> Iterator[LogitsWriter]:
    if isinstance(base, LoadedModel):
        if options.save_logits is not None:
            yield LogitsWriter(options.save_logits, chunks, base.n_vocab)
        if options.save_base is not None:
            yield LogitsWriter(options.save_base, chunks, base.n_vocab, options.top_k)


def _alone(model: LoadedModel, chunks: np.ndarray, advance: Advance) -> np.ndarray:
    out = []
    for batch in batches(chunks.shape[0], chunks.shape[1], model.n_vocab):
        wanted = torch.from_numpy(targets(chunks[batch]).astype(np.int64))
        logits = scored_logits(model, chunks[batch])
        out += [token_nll(rows, target.to(rows.device)) for rows, target in zip(logits, wanted, strict=True)]
        advance(chunks[batch].size)
    return np.concatenate(out)


def _tasks(
    model: LoadedModel, jobs: Sequence[tuple[TaskJob, list[Task]]], options: Options, bar: Bar
) -> list[tuple[TaskJob, TaskResult]]:
    out = []
    for job, tasks in jobs:
        with bar(f"{job.kind} {model.path.name}", len(tasks)) as advance:
            out.append((job, score(model, job.kind, tasks, options.n_ctx or 512, advance)))
    return out


def _harness(model: LoadedModel, options: Options) -> dict[str, float] | None:
    if not options.lm_eval:
        return None
    return run_harness(model, options.lm_eval, options.n_ctx or 2048, options.lm_eval_limit)


def _task_score(job: TaskJob, result: TaskResult) -> TaskScore:
    right = tuple(one.right for one in result.scored)
    return TaskScore(job.name, str(job.path), digest([job.path]), result.accuracy, result.chance, right)


def _divergence_tests(
    names: Sequence[str], scores: Sequence[TokenScores], n_chunks: int
) -> Iterator[Comparison]:
    for a, b in itertools.combinations(range(len(scores)), 2):
        test = paired_test(scores[a].kld, scores[b].kld, n_chunks)
        yield Comparison("kld", names[a], names[b], test.difference.value, test.p_value)


def _task_tests(
    names: Sequence[str], found: Sequence[Sequence[tuple[TaskJob, TaskResult]]]
) -> Iterator[Comparison]:
    for a, b in itertools.combinations(range(len(found)), 2):
        for (job, one), (_, other) in zip(found[a], found[b], strict=True):
            test = mcnemar(one, other)
            difference = one.accuracy.value - other.accuracy.value
            yield Comparison(job.name, names[a], names[b], difference, test.p_value)
