"""run(job): plan, then read → quantize → write, a slab of rows at a time, the three steps overlapping.

Everything that can be known to fail fails while planning, before a byte is written. Slabs, threads and devices change
the speed, never the bytes. Without a GPU engine nothing here loads torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from quantmill.gguf_io import GGUFError, GGUFSink, TensorSource, open_source
from quantmill.gguf_io.kinds import MODEL
from quantmill.gguf_io.outputs import check_output
from quantmill.imatrix.store import ImportanceMatrix, load
from quantmill.jobs.edits import NO_EDITS, Edits, cut_importance, open_model
from quantmill.jobs.errors import PlanError
from quantmill.jobs.line import Line
from quantmill.jobs.watcher import PlanWatcher, Silent
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.trust import DeviceFault
from quantmill.qkernels.types import TYPES, QuantizeError
from quantmill.recipe import FILE_TYPES, ImportanceIndex, Plan, PlanEntry, Recipe, build_plan

DEFAULT_BUFFER_BYTES = 128 << 20


@dataclass(frozen=True)
class Job:
    """`source`: a GGUF file or a Hugging Face directory. `threads`: of the CPU engine, None for all cores.

    `imatrix_name`: what the metadata calls it, its texts then by name too; by default their paths, as llama-quantize.
    `max_buffer_bytes` bounds the rows in memory, in all their forms, over all slabs under way.
    `force`: replace an output that is no GGUF model. `inputs`: further files that were read for this job, which no
    output may be. `way_out`: what to say of a tensor that its type cannot hold, where it is not --tensor-type. `later`:
    whether a directory's layers that predict further tokens are there: "with", "without", or "only" they.
    `strict_device`: a device that is not right or does not work is an error, where else the CPU does its work.
    `edits`: what pruning changes of the source, and so of everything that is made of it.
    """

    source: str
    output: Path
    recipe: Recipe
    imatrix: str | None = None
    imatrix_name: str | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    max_buffer_bytes: int = DEFAULT_BUFFER_BYTES
    force: bool = False
    inputs: tuple[str, ...] = ()
    way_out: str = ""
    later: str = "with"
    strict_device: bool = False
    edits: Edits = NO_EDITS


@dataclass(frozen=True)
class Result:
    """`step_seconds`: how long each step was busy; they overlap, so the sum exceeds `seconds`."""

    plan: Plan
    paths: tuple[Path, ...]
    source_bytes: int
    file_bytes: int
    seconds: float
    step_seconds: Mapping[str, float]
    engines: tuple[Engine, ...]

    @property
    def converted_weights(self) -> int:
        return sum(entry.n_weights for entry in self.plan.entries if entry.converted)


def plan_job(job: Job) -> Plan:
    """What `run` would write, and in `problems` all that would stop it; reads headers only.

    Raises RecipeError for a recipe that no run could follow, GGUFError, ImatrixError or OSError for inputs that are
    not sound.
    """
    with ExitStack() as opened:
        return _prepare(job, opened).plan


def run(job: Job, watcher: PlanWatcher | None = None) -> Result:
    """Do the job. The output appears under its name when it is complete, or not at all.

    Raises PlanError for a plan that cannot be carried out, JobError for weights that cannot be quantized (naming
    tensor and row), and as plan_job does. An interrupt leaves nothing behind. A device that is found to give wrong
    bytes has its file thrown away, and all of it is done again on the CPU; DeviceFault with `strict_device`.
    """
    watcher = watcher or Silent()
    try:
        return _run(job, watcher)
    except DeviceFault as fault:
        if job.strict_device:
            raise
        watcher.warn(f"{fault}; what it has made is thrown away, and the CPU begins again")
        return _run(replace(job, device="cpu"), watcher)


def _run(job: Job, watcher: PlanWatcher) -> Result:
    started = time.perf_counter()
    with ExitStack() as opened:
        ready = _prepare(job, opened)
        plan, sink = ready.plan, ready.sink
        if plan.problems or sink is None:
            raise PlanError(plan.problems)
        for warning in sink.warnings:
            watcher.warn(warning)
        opened.enter_context(sink)
        watcher.planned(plan)
        for note in kept_notes(plan):
            watcher.note(note)
        watcher.began(job.recipe.file_type, sum(entry.source_bytes for entry in plan.entries), "bytes")
        search = job.recipe.search
        quantizers = [
            quantizer
            for engine in ready.engines
            for quantizer in row_quantizers(engine, job.threads, search, watcher.warn, job.strict_device)
        ]
        line = Line(
            ready.source, sink, ready.importance, quantizers, watcher, lambda entry: way_out(job, entry)
        )
        line.carry(plan.entries, job.max_buffer_bytes)
        with line.clock("write"):
            sink.commit()
        sources = ready.source.paths
    return Result(
        plan=plan,
        paths=sink.paths,
        source_bytes=sum(path.stat().st_size for path in sources),
        file_bytes=sink.file_bytes,
        seconds=time.perf_counter() - started,
        step_seconds=line.clock.seconds,
        engines=ready.engines,
    )


def check_outputs(job: Job, n_bytes: int | None = None) -> None:
    """The output rule for a job whose plan is not known yet; `run` looks again. Raises GGUFError.

    n_bytes: what is wanted of the disk, as far as that is known; never more than the source has.
    """
    if n_bytes is not None:
        source = open_source(job.source, job.later)
        source.close()
        n_bytes = min(n_bytes, sum(path.stat().st_size for path in source.paths))
    if not job.recipe.keep_split and job.recipe.split_max_bytes is None:
        check_output(job.output, MODEL, _inputs(job), force=job.force, n_bytes=n_bytes)


def _inputs(job: Job) -> tuple[str, ...]:
    return (job.source, *([job.imatrix] if job.imatrix else []), *job.inputs)


def kept_notes(plan: Plan) -> list[str]:
    """What is to be said of tensors that are packed in the checkpoint as the output wants them."""
    types = [entry.type for entry in plan.entries if entry.original and not entry.converted]
    return [
        f"{types.count(type)} tensors are {type} in the checkpoint and are kept exactly"
        for type in dict.fromkeys(types)
    ]


def require_sound(plan: Plan) -> None:
    """Raises PlanError with what makes the plan impossible."""
    if plan.problems:
        raise PlanError(plan.problems)


def sink_of(
    job: Job, plan: Plan, source: TensorSource, watcher: PlanWatcher, kept_bytes: int = 0
) -> GGUFSink:
    """What takes the tensors of the plan; the watcher hears what it replaces. Raises GGUFError.

    kept_bytes: what lies beside the output until it is done.
    """
    sink = _sink(job, source, plan, kept_bytes)
    for warning in sink.warnings:
        watcher.warn(warning)
    return sink


def load_importance(job: Job) -> ImportanceMatrix | None:
    """The importance that a job's tensors are searched with, filtered; None without."""
    if job.imatrix is None:
        return None
    return _whole_importance(job, job.imatrix).filtered(job.include_weights, job.exclude_weights)


def _whole_importance(job: Job, imatrix: str) -> ImportanceMatrix:
    """Of the experts that stay, before it is filtered."""
    matrix = load(imatrix)
    if not job.edits.experts:
        return matrix
    source = open_source(job.source)
    try:
        return cut_importance(matrix, job.edits, source)
    finally:
        source.close()


def importance_index(job: Job, importance: ImportanceMatrix | None) -> ImportanceIndex | None:
    """What planning must know of the importance."""
    if importance is None or job.imatrix is None:
        return None
    datasets = importance.datasets
    if job.imatrix_name is not None:
        datasets = tuple(Path(name).name for name in datasets)
    return ImportanceIndex(
        job.imatrix_name or job.imatrix,
        {name: entry.n_values for name, entry in importance.entries.items()},
        datasets,
        importance.chunk_count,
    )


@dataclass(frozen=True)
class _Ready:
    """A job that has been looked at from all sides. No sink: its place is one of the plan's problems."""

    source: TensorSource
    plan: Plan
    importance: ImportanceMatrix | None
    engines: tuple[Engine, ...]
    sink: GGUFSink | None


def _prepare(job: Job, opened: ExitStack) -> _Ready:
    source = open_model(job.source, job.edits, job.later)
    opened.callback(source.close)
    plan, importance = _plan(job, source)
    problems = list(plan.problems)
    engines: tuple[Engine, ...] = ()
    try:
        engines = choose_engines(job.device)
    except QuantizeError as error:
        problems.append(str(error))
    sink = None
    try:
        sink = _sink(job, source, plan)
    except GGUFError as error:
        problems.append(str(error))
    return _Ready(source, replace(plan, problems=tuple(problems)), importance, engines, sink)


def _sink(job: Job, source: TensorSource, plan: Plan, kept_bytes: int = 0) -> GGUFSink:
    return GGUFSink(
        job.output,
        plan.metadata,
        plan.output_tensors(),
        keep_split=job.recipe.keep_split,
        split_max_bytes=job.recipe.split_max_bytes,
        inputs=(*source.paths, *_inputs(job)),
        force=job.force,
        kept_bytes=kept_bytes,
    )


def _plan(job: Job, source: TensorSource) -> tuple[Plan, ImportanceMatrix | None]:
    importance = None
    warnings: list[str] = []
    problems: list[str] = []
    specs = source.specs()
    if job.imatrix is not None:
        whole = _whole_importance(job, job.imatrix)
        importance = whole.filtered(job.include_weights, job.exclude_weights)
        warnings = _filters_without_use(job, whole)
        if not {spec.name for spec in specs} & set(whole.entries):
            problems.append(
                f"{job.imatrix}: none of its {len(whole.entries)} entries is named as a tensor of {job.source}; "
                "was it collected from this model?"
            )
    plan = build_plan(specs, source.metadata, job.recipe, importance_index(job, importance))
    # A matrix of another model is one problem, not one for every tensor.
    problems += [text for text in plan.problems if not problems or str(job.imatrix) not in text]
    warnings = [*source.warnings, *warnings, *plan.warnings]
    return replace(plan, warnings=tuple(warnings), problems=tuple(problems)), importance


def _filters_without_use(job: Job, importance: ImportanceMatrix) -> list[str]:
    given = [("--include-weights", text) for text in job.include_weights]
    given += [("--exclude-weights", text) for text in job.exclude_weights]
    return [
        f"{option} {text}: no entry of {job.imatrix} has this in its name"
        for option, text in given
        if not any(text in name for name in importance.entries)
    ]


def way_out(job: Job, entry: PlanEntry) -> str:
    """How to give a tensor a type that holds it, with an option that the command has."""
    if job.way_out:
        return job.way_out
    base = FILE_TYPES.get(job.recipe.file_type)
    if base is not None and TYPES[base.base].family == "plain":
        return "choose the file type BF16 or F32"
    return f"give this tensor a type that holds it (--tensor-type {entry.name}=bf16)"
