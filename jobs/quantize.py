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

from quantmill.gguf_io import GGUFSink, TensorSource, open_source
from quantmill.gguf_io.kinds import MODEL
from quantmill.gguf_io.outputs import check_output
from quantmill.imatrix.store import ImportanceMatrix, load
from quantmill.jobs.errors import JobError
from quantmill.jobs.line import Line
from quantmill.jobs.watcher import PlanWatcher, Silent
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.rows import row_quantizers
from quantmill.recipe import ImportanceIndex, Plan, Recipe, build_plan

DEFAULT_BUFFER_BYTES = 128 << 20


@dataclass(frozen=True)
class Job:
    """`source`: a GGUF file or a Hugging Face directory. `threads`: of the CPU engine, None for all cores.

    `max_buffer_bytes` bounds the rows in memory, in all their forms, over all slabs under way.
    `force`: replace an output that is no GGUF model. `inputs`: further files that were read for this job, which no
    output may be.
    """

    source: str
    output: Path
    recipe: Recipe
    imatrix: str | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    max_buffer_bytes: int = DEFAULT_BUFFER_BYTES
    force: bool = False
    inputs: tuple[str, ...] = ()


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
    """What `run` would write; reads headers only. Raises the packages' own errors, all of them ValueErrors."""
    with ExitStack() as opened:
        source = open_source(job.source)
        opened.callback(source.close)
        return _plan(job, source, load_importance(job))


def run(job: Job, watcher: PlanWatcher | None = None) -> Result:
    """Do the job. The output appears under its name when it is complete, or not at all.

    Raises JobError for a plan that cannot be carried out and for weights that cannot be quantized (naming tensor and
    row), the packages' own errors (GGUFError, RecipeError, ImatrixError, QuantizeError), OSError. An interrupt leaves
    nothing behind.
    """
    started = time.perf_counter()
    watcher = watcher or Silent()
    with ExitStack() as opened:
        source = open_source(job.source)
        opened.callback(source.close)
        importance = load_importance(job)
        plan = _plan(job, source, importance)
        require_sound(plan)
        engines = choose_engines(job.device)
        sink = opened.enter_context(sink_of(job, plan, source, watcher))
        watcher.planned(plan)
        quantizers = [q for engine in engines for q in row_quantizers(engine, job.threads)]
        line = Line(source, sink, importance, quantizers, watcher)
        line.carry(plan.entries, job.max_buffer_bytes)
        with line.clock("write"):
            sink.commit()
    return Result(
        plan=plan,
        paths=sink.paths,
        source_bytes=sum(path.stat().st_size for path in source.paths),
        file_bytes=sink.file_bytes,
        seconds=time.perf_counter() - started,
        step_seconds=line.clock.seconds,
        engines=engines,
    )


def check_outputs(job: Job) -> None:
    """The output rule for a job whose plan is not known yet; `run` looks again, at the space too. Raises GGUFError."""
    if not job.recipe.keep_split and job.recipe.split_max_bytes is None:
        check_output(job.output, MODEL, _inputs(job), force=job.force)


def _inputs(job: Job) -> tuple[str, ...]:
    return (job.source, *([job.imatrix] if job.imatrix else []), *job.inputs)


def require_sound(plan: Plan) -> None:
    """Raises JobError with what makes the plan impossible."""
    if plan.problems:
        others = f" (and {len(plan.problems) - 1} more like it)" if len(plan.problems) > 1 else ""
        raise JobError(plan.problems[0] + others)


def sink_of(job: Job, plan: Plan, source: TensorSource, watcher: PlanWatcher) -> GGUFSink:
    """What takes the tensors of the plan; the watcher hears what it replaces. Raises GGUFError."""
    sink = GGUFSink(
        job.output,
        plan.metadata,
        plan.output_tensors(),
        keep_split=job.recipe.keep_split,
        split_max_bytes=job.recipe.split_max_bytes,
        inputs=(*source.paths, *_inputs(job)),
        force=job.force,
    )
    for note in sink.notes:
        watcher.note(note)
    return sink


def load_importance(job: Job) -> ImportanceMatrix | None:
    """The importance that a job's tensors are searched with, filtered; None without."""
    if job.imatrix is None:
        return None
    return load(job.imatrix).filtered(job.include_weights, job.exclude_weights)


def _plan(job: Job, source: TensorSource, importance: ImportanceMatrix | None) -> Plan:
    plan = build_plan(source.specs(), source.metadata, job.recipe, importance_index(job, importance))
    return replace(plan, warnings=(*source.warnings, *plan.warnings))


def importance_index(job: Job, importance: ImportanceMatrix | None) -> ImportanceIndex | None:
    """What planning must know of the importance."""
    if importance is None or job.imatrix is None:
        return None
    return ImportanceIndex(
        job.imatrix,
        {name: entry.n_values for name, entry in importance.entries.items()},
        importance.datasets,
        importance.chunk_count,
    )
