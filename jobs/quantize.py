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

from quantmill.gguf_io import commit_all
from quantmill.jobs.line import line_of
from quantmill.jobs.quantize_plan import kept_notes, plan_job, prepare, require_sound
from quantmill.jobs.quantize_request import Job, Written
from quantmill.jobs.watcher import PlanWatcher, Silent, Watcher
from quantmill.jobs.worker import carry
from quantmill.qkernels.engines import Engine
from quantmill.qkernels.types import DeviceFault
from quantmill.recipe import Plan

__all__ = ["Job", "Result", "plan_job", "require_forgiven", "run", "run_jobs"]


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
        ready = prepare(jobs, opened)
        plans, sinks = ready.plans, ready.sinks
        require_sound(*plans)
        ray = None
        if first.ray is not None:
            from quantmill.jobs.cluster import connected  # with sockets

            ray = opened.enter_context(connected(first.ray, first.threads))
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
