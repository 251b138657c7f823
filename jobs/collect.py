"""An importance matrix from a model and texts: load, cut, run, save."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from quantmill.errors import counted
from quantmill.gguf_io.kinds import IMATRIX
from quantmill.gguf_io.outputs import check_output
from quantmill.imatrix import coverage, store
from quantmill.imatrix.collect import Progress, Settings, collect
from quantmill.imatrix.matrix import ActivationError, ImatrixError, ImportanceMatrix
from quantmill.imatrix.reading import read_chunks, read_texts
from quantmill.imatrix.run import Collecting, Saving, partial_of
from quantmill.imatrix.run import run as run_saving
from quantmill.imatrix.streamed import collect_streamed
from quantmill.imatrix.text import Cutting, Text
from quantmill.jobs.cluster import require_listener
from quantmill.jobs.collect_load import Loading, loaded_model
from quantmill.jobs.elsewhere import files_of
from quantmill.jobs.going_on import telling
from quantmill.jobs.runnable import require_runnable
from quantmill.jobs.saved import identity_of
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.models.model import LoadedModel
from quantmill.models.overflow import damaged
from quantmill.models.streamed import StreamedModel
from quantmill.models.workers import Workers, working


@dataclass(frozen=True)
class Job:
    """model: a GGUF file or a Hugging Face directory; name: what it was asked for by, so that --resume knows it.

    format None: by the output's name. perplexity: of the text, while running. with_means: also Σx. route_all: every
    token to every expert. nextn: also the layers that predict further tokens. shrink: draw each expert to its layer's
    mean as if it had seen so many more tokens. batch: chunks run together, None: by the model and the length of a
    chunk. every: chunks between two savings, 0: only when stopped. stream: read the model layer by layer; then
    nothing is saved before the end. ray: the cluster whose workers run the batches (jobs.cluster), None: this process.
    """

    model: Path
    name: str
    texts: tuple[Text, ...]
    output: Path
    cutting: Cutting
    format: store.Format | None = None
    parse_special: bool = False
    process_output: bool = False
    perplexity: bool = True
    with_means: bool = False
    route_all: bool = False
    nextn: bool = False
    shrink: int = 0
    batch: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    tokenizer: Path | None = None
    stream: bool = False
    every: int = 10
    resume: bool = False
    force: bool = False
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.shrink < 0:
            raise ImatrixError(f"--shrink-experts {self.shrink}: a number of tokens cannot be negative")
        for option, value in (("--batch", self.batch), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise ImatrixError(f"{option} {value}: must be at least 1")
        if self.ray and (self.stream or self.nextn):
            raise ImatrixError("--ray: each worker has the whole model; leave out --stream and --nextn")
        if self.stream and self.nextn:
            raise ImatrixError(
                "--stream and --nextn cannot be used together: these layers run behind all others"
            )


@dataclass(frozen=True)
class Result:
    """perplexity: value and error, None when not asked for. gaps: tensors that saw too little text. arithmetic: what
    was computed with (LoadedModel.arithmetic)."""

    matrix: ImportanceMatrix
    perplexity: tuple[float, float] | None
    tokens_per_second: float | None
    gaps: tuple[coverage.Gap, ...]
    arithmetic: str


def run(job: Job, watcher: Watcher | None = None) -> Result:
    """Collect and save. Everything that can fail is tried before the model runs: texts, tokens, the output's place.

    Raises ImatrixError, GGUFError, ModelError, OSError. Whatever stops it, the whole batches done until then are in
    a file beside the output; an interrupt says so.
    """
    watcher = watcher or Silent()
    names = tuple(str(text.path) for text in job.texts)
    inputs: list[str | Path] = [job.model, *names, *([job.tokenizer] if job.tokenizer else [])]
    output = check_output(job.output, IMATRIX, inputs, force=job.force)
    check_output(partial_of(output.final), IMATRIX, inputs)
    if job.ray is not None:
        require_listener(job.ray)  # before the model is read
    saving = Saving(output.final, names, _computed(job), job.every, job.resume)
    require_runnable(job.model)
    plain = read_texts(list(job.texts))
    with loaded_model(_loading(job), watcher) as loaded:
        chunks = read_chunks(list(job.texts), plain, job.cutting, loaded, job.parse_special, job.tokenizer)
        settings = Settings(
            bos=loaded.tokenizer.first,
            process_output=job.process_output,
            perplexity=job.perplexity,
            with_means=job.with_means,
            route_all=job.route_all,
            nextn=job.nextn,
            batch=job.batch,
        )
        for warning in output.warnings:
            watcher.warn(warning)
        progress = _Progress(watcher, job.stream)
        model, collecting = _way(job, loaded, len(chunks), watcher)
        with (
            telling(lambda: saving.advice),
            _workers(job, settings, loaded, watcher) as workers,
            workers.ending(loaded.model),
        ):
            try:
                matrix, found = run_saving(
                    model, loaded.table, chunks, settings, saving, progress, watcher.warn, workers, collecting
                )
            except ActivationError as error:
                why = damaged(loaded.source)
                raise (ActivationError(f"{job.name}: {why}") if why else error) from None
        missed = coverage.uncollected(matrix, _tensors(loaded))
    matrix = coverage.shrunk(matrix, job.shrink)
    store.save(output.final, matrix, job.format or store.format_of(job.output))
    saving.partial.unlink(missing_ok=True)
    gaps = tuple(coverage.gaps(matrix, missed))
    return Result(matrix, found.perplexity(), progress.rate, gaps, loaded.arithmetic)


def _computed(job: Job) -> str:
    """Which model in which arithmetic. A directory that is read layer by layer runs as a GGUF."""
    as_gguf = job.stream and job.model.is_dir()
    return identity_of({"name": job.name, "dtype": job.dtype, "as_gguf": as_gguf}, files_of(job.model))


def _loading(job: Job) -> Loading:
    return Loading(job.model, job.name, job.device, job.dtype, job.tokenizer, job.nextn, job.stream)


def _workers(
    job: Job, settings: Settings, loaded: LoadedModel, watcher: Watcher
) -> AbstractContextManager[Workers]:
    if job.ray is None:
        return working(job.threads, loaded.device.type)
    from quantmill.jobs.collect_on_ray import workers_on_ray  # nobody else needs it

    return workers_on_ray(job.ray, job.threads, _loading(job), settings, loaded, watcher)


def _way(job: Job, loaded: LoadedModel, n_chunks: int, watcher: Watcher) -> tuple[Any, Collecting]:
    """What runs, and how."""
    if not isinstance(loaded, StreamedModel):
        watcher.began("imatrix", n_chunks, "chunks")
        return loaded.model, collect
    watcher.note(
        f"{job.name}: its weights are read layer by layer, {counted(n_chunks, 'chunk')} through each"
    )
    watcher.began("imatrix", loaded.n_layers, "layers")
    return loaded, partial(collect_streamed, layer_done=lambda: watcher.progressed(1))


class _Progress:
    """What is done so far, for the watcher, which wants to know how much more it is."""

    def __init__(self, watcher: Watcher, is_by_layers: bool) -> None:
        self._watcher, self._is_by_layers = watcher, is_by_layers
        self._told = 0
        self.rate: float | None = None

    def __call__(self, progress: Progress) -> None:
        self.rate = progress.n_tokens / progress.seconds
        if self._is_by_layers:
            return
        ppl = f", PPL {progress.perplexity[0]:.4f}" if progress.perplexity else ""
        self._watcher.progressed(progress.n_done - self._told, f"{self.rate:.0f} tokens/s{ppl}")
        self._told = progress.n_done


def _tensors(loaded: LoadedModel) -> list[tuple[str, int]]:
    """What will be quantized: the tensors of the GGUF, or those the checkpoint converts to."""
    if loaded.source is not None:
        return [(spec.name, len(spec.shape)) for spec in loaded.source.specs()]
    return [(name, len(view.shape)) for name, view in loaded.table.views.items()]
