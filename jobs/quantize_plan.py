"""What a run of `quantmill quantize` would do, known from headers alone; whatever can be known to fail fails here.

Nothing here loads numpy for a GGUF without an importance matrix: a plan is to be there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantmill.errors import counted
from quantmill.gguf_io import GGUFError, GGUFSink, TensorSource, open_source
from quantmill.gguf_io.kinds import MODEL
from quantmill.gguf_io.outputs import check_output
from quantmill.jobs.edits import open_model
from quantmill.jobs.errors import PlanError
from quantmill.jobs.importance import filters_without_use, importance_index, whole_importance
from quantmill.jobs.quantize_request import Job, inputs_of
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.types import QuantizeError
from quantmill.recipe import Plan, build_plan

if TYPE_CHECKING:
    from quantmill.imatrix.store import ImportanceMatrix
    from quantmill.jobs.watcher import PlanWatcher


def plan_job(job: Job) -> Plan:
    """What `run` would write, and in `problems` all that would stop it; reads headers only.

    Raises RecipeError for a recipe that no run could follow, GGUFError, ImatrixError or OSError for inputs that are
    not sound.
    """
    return plan_jobs((job,))[0]


def plan_jobs(jobs: Sequence[Job]) -> tuple[Plan, ...]:
    """The same for run_jobs."""
    with ExitStack() as opened:
        return prepare(jobs, opened).plans


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
class Ready:
    """Jobs that have been looked at from all sides. Fewer sinks than jobs: a place is one of the problems, or the
    outputs are on the workers."""

    source: TensorSource
    plans: tuple[Plan, ...]
    importance: ImportanceMatrix | None
    engines: tuple[Engine, ...]
    sinks: tuple[GGUFSink, ...]


def prepare(jobs: Sequence[Job], opened: ExitStack) -> Ready:
    first = jobs[0]
    assert all(_alike(first, job) for job in jobs)
    source = open_model(first.source, first.edits, first.later)
    opened.callback(source.close)
    whole = None if first.imatrix is None else whole_importance(first, first.imatrix)
    importance = whole and whole.filtered(first.include_weights, first.exclude_weights)
    plans = [_plan(job, source, whole, importance) for job in jobs]
    engines: tuple[Engine, ...] = ()
    try:
        if first.ray is None:  # there each worker chooses its own
            n_weights = sum(entry.n_weights for plan in plans for entry in plan.entries if entry.converted)
            engines = choose_engines(first.device, n_weights, first.threads)
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
    return Ready(source, tuple(plans), importance, engines, tuple(sinks))


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
