"""run(job): plan, then read → quantize → write, a slab of rows at a time, the three steps overlapping.

Everything that can be known to fail fails while planning, before a byte is written. Slabs, threads and devices change
the speed, never the bytes. Without a GPU engine nothing here loads torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantmill.errors import counted
from quantmill.gguf_io import GGUFError, GGUFSink, TensorSource, commit_all, open_source
from quantmill.gguf_io.kinds import MODEL
from quantmill.gguf_io.outputs import check_output
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.cluster import connected
from quantmill.jobs.edits import open_model
from quantmill.jobs.errors import PlanError
from quantmill.jobs.importance import filters_without_use, importance_index, whole_importance
from quantmill.jobs.line import line_of
from quantmill.jobs.quantize_request import DEFAULT_BUFFER_BYTES, Job, Written, inputs_of
from quantmill.jobs.watcher import PlanWatcher, Silent, Watcher
from quantmill.jobs.worker import carry
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.trust import DeviceFault
from quantmill.qkernels.types import QuantizeError
from quantmill.recipe import Plan, build_plan

__all__ = [
    "DEFAULT_BUFFER_BYTES",
    "Job",
    "Result",
    "check_outputs",
    "kept_notes",
    "plan_job",
    "plan_jobs",
    "require_forgiven",
    "require_sound",
    "run",
    "run_jobs",
    "sink_of",
]


@dataclass(frozen=True)
class Result:
    """`step_seconds`: how long each step was busy; they overlap, so the sum exceeds `seconds`. Both are those of all
    jobs that were done together, `n_jobs` of them. `hosts`: where each path is, unless all are here."""

    plan: Plan
    paths: tuple[Path, ...]
    source_bytes: int
    file_bytes: int
    seconds: float
    step_seconds: Mapping[str, float]
    engines: tuple[Engine, ...]
    n_jobs: int = field(default=1, kw_only=True)
    hosts: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def converted_weights(self) -> int:
        return sum(entry.n_weights for entry in self.plan.entries if entry.converted)


def plan_job(job: Job) -> Plan:
    """What `run` would write, and in `problems` all that would stop it; reads headers only.

    Raises RecipeError for a recipe that no run could follow, GGUFError, ImatrixError or OSError for inputs that are
    not sound.
    """
    return plan_jobs((job,))[0]


def plan_jobs(jobs: Sequence[Job]) -> tuple[Plan, ...]:
    """The same for run_jobs."""
    with ExitStack() as opened:
        return _prepare(jobs, opened).plans


def run(job: Job, watcher: PlanWatcher | None = None) -> Result:
    """Do the job. The output appears under its name when it is complete, or not at all.

    Raises PlanError for a plan that cannot be carried out, JobError for weights that cannot be quantized (naming
    tensor and row), and as plan_job does. An interrupt leaves nothing behind. A device that is found to give wrong
    bytes has its file thrown away, and all of it is done again on the CPU; DeviceFault with `strict_device`.
    """
    return run_jobs((job,), watcher)[0]


def run_jobs(jobs: Sequence[Job], watcher: PlanWatcher | None = None) -> tuple[Result, ...]:
    """Do jobs that differ in nothing but output and file type, and read the model once for all of them.

    Each file is the one that `run` makes of its job; none appears before all are complete. Raises as `run` does.
    """
    watcher = watcher or Silent()
    try:
        return _run(jobs, watcher)
    except DeviceFault as fault:
        require_forgiven(fault, jobs[0], watcher)
        return _run([replace(job, device="cpu", resume=False) for job in jobs], watcher)


def require_forgiven(fault: DeviceFault, job: Job, watcher: Watcher) -> None:
    """Says that the CPU begins again; raises the fault where the job wants its device or none."""
    if job.strict_device:
        raise fault
    watcher.warn(f"{fault}; what it has made is thrown away, and the CPU begins again")


def _run(jobs: Sequence[Job], watcher: PlanWatcher) -> tuple[Result, ...]:
    started = time.perf_counter()
    first = jobs[0]
    with ExitStack() as opened:
        ready = _prepare(jobs, opened)
        plans, sinks = ready.plans, ready.sinks
        require_sound(*plans)
        ray = None if first.ray is None else opened.enter_context(connected(first.ray, first.threads))
        for warning in (line for sink in sinks for line in sink.warnings):
            watcher.warn(warning)
        for sink in sinks:
            opened.enter_context(sink)
        for plan in plans:
            watcher.planned(plan)
        for note in dict.fromkeys(note for plan in plans for note in kept_notes(plan)):
            watcher.note(note)
        n_bytes = sum(entry.source_bytes for entry in plans[0].entries)
        watcher.began(", ".join(job.recipe.file_type for job in jobs), n_bytes, "bytes")
        entries = [plan.entries for plan in plans]
        engines = ready.engines
        written = [Written(sink.paths, sink.file_bytes) for sink in sinks]
        if ray is None:
            with line_of(first, ready.source, sinks, ready.importance, engines, watcher.warn) as line:
                carry(line, entries, first.max_buffer_bytes, watcher)
            clock = line.clock
        elif first.output_on is not None:
            from quantmill.jobs.splits_on_ray import split_on_ray  # nobody else needs it

            clock, engines, written = split_on_ray(ray, jobs, ready.source, ready.importance, plans, watcher)
        else:
            from quantmill.jobs.on_ray import carry_on_ray, finished_rows

            rows = opened.enter_context(finished_rows(first, ready.source, sinks, watcher))
            clock, engines = carry_on_ray(
                ray, first, ready.source, sinks, ready.importance, entries, rows, watcher
            )
        with clock("write"):
            commit_all(sinks)
        sources = ready.source.paths
    seconds = time.perf_counter() - started
    return tuple(
        Result(
            plan=plan,
            paths=files.paths,
            source_bytes=sum(path.stat().st_size for path in sources),
            file_bytes=files.n_bytes,
            seconds=seconds,
            step_seconds=clock.seconds,
            engines=engines,
            n_jobs=len(jobs),
            hosts=files.hosts,
        )
        for plan, files in zip(plans, written, strict=True)
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
        check_output(job.output, MODEL, inputs_of(job), force=job.force, n_bytes=n_bytes)


def kept_notes(plan: Plan) -> list[str]:
    """What is to be said of tensors that are packed in the checkpoint as the output wants them."""
    types = [entry.type for entry in plan.entries if entry.original and not entry.converted]
    return [
        f"{counted(types.count(type), 'tensor is', 'tensors are')} {type} in the checkpoint and kept exactly"
        for type in dict.fromkeys(types)
    ]


def require_sound(*plans: Plan) -> None:
    """Raises PlanError with what makes the plans impossible."""
    problems = tuple(dict.fromkeys(problem for plan in plans for problem in plan.problems))
    if problems:
        raise PlanError(problems)


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


@dataclass(frozen=True)
class _Ready:
    """Jobs that have been looked at from all sides. Fewer sinks than jobs: a place is one of the problems, or the
    outputs are on the workers."""

    source: TensorSource
    plans: tuple[Plan, ...]
    importance: ImportanceMatrix | None
    engines: tuple[Engine, ...]
    sinks: tuple[GGUFSink, ...]


def _prepare(jobs: Sequence[Job], opened: ExitStack) -> _Ready:
    first = jobs[0]
    assert all(_alike(first, job) for job in jobs)
    source = open_model(first.source, first.edits, first.later)
    opened.callback(source.close)
    whole = None if first.imatrix is None else whole_importance(first, first.imatrix)
    importance = whole and whole.filtered(first.include_weights, first.exclude_weights)
    plans = [_plan(job, source, whole, importance) for job in jobs]
    engines: tuple[Engine, ...] = ()
    try:
        engines = (
            choose_engines(first.device) if first.ray is None else ()
        )  # there each worker chooses its own
    except QuantizeError as error:
        plans = [_with_problem(plan, str(error)) for plan in plans]
    sinks: list[GGUFSink] = []
    finals: dict[Path, Path] = {}
    for i, job in enumerate(jobs if first.output_on is None else ()):  # there the workers look
        others = sum(plan.file_bytes for plan in plans[:i])
        try:
            sink = _sink(job, source, plans[i], others)
            for path, final in zip(sink.paths, sink.finals, strict=True):
                if finals.setdefault(final, path) is not path:
                    raise GGUFError(f"{path}: is the same file as {finals[final]}; choose another output")
            sinks.append(sink)
        except GGUFError as error:
            plans[i] = _with_problem(plans[i], str(error))
    return _Ready(source, tuple(plans), importance, engines, tuple(sinks))


def _alike(job: Job, other: Job) -> bool:
    """Whether all but output and file type is the same."""
    recipe = replace(job.recipe, file_type=other.recipe.file_type)
    return replace(job, output=other.output, recipe=recipe) == other


def _with_problem(plan: Plan, problem: str) -> Plan:
    return replace(plan, problems=(*plan.problems, problem))


def _sink(job: Job, source: TensorSource, plan: Plan, kept_bytes: int = 0) -> GGUFSink:
    return GGUFSink(
        job.output,
        plan.metadata,
        plan.output_tensors(),
        keep_split=job.recipe.keep_split,
        split_max_bytes=job.recipe.split_max_bytes,
        inputs=(*source.paths, *inputs_of(job)),
        force=job.force,
        kept_bytes=kept_bytes,
        keep=job.resume,
    )


def _plan(
    job: Job, source: TensorSource, whole: ImportanceMatrix | None, importance: ImportanceMatrix | None
) -> Plan:
    """importance: of the whole, what the job's filters leave."""
    warnings: list[str] = []
    problems: list[str] = []
    specs = source.specs()
    if whole is not None:
        warnings = filters_without_use(job, whole)
        if not {spec.name for spec in specs} & set(whole.entries):
            problems.append(
                f"{job.imatrix}: none of its {len(whole.entries)} entries is named as a tensor of {job.source}; "
                "was it collected from this model?"
            )
    plan = build_plan(specs, source.metadata, job.recipe, importance_index(job, importance))
    # A matrix of another model is one problem, not one for every tensor.
    problems += [text for text in plan.problems if not problems or str(job.imatrix) not in text]
    warnings = [*source.warnings, *warnings, *plan.warnings]
    return replace(plan, warnings=tuple(warnings), problems=tuple(problems))
