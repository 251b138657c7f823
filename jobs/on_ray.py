"""The rows of a quantization, carried by the workers of a Ray cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantmill.errors import counted
from quantmill.gguf_io import GGUFSink, TensorSource
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.carrier import inputs_of
from quantmill.jobs.cluster_line import ClusterLine
from quantmill.jobs.errors import HeadLost
from quantmill.jobs.finished_rows import FinishedRows
from quantmill.jobs.line import Clock
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.watcher import Watcher
from quantmill.jobs.worker import carry
from quantmill.qkernels.engines import Engine
from quantmill.recipe import PlanEntry


def carry_on_ray(
    ray: Any,
    job: Job,
    source: TensorSource,
    sinks: Sequence[GGUFSink],
    importance: ImportanceMatrix | None,
    entries: Sequence[Sequence[PlanEntry]],
    rows: FinishedRows,
    watcher: Watcher,
) -> tuple[Clock, tuple[Engine, ...]]:
    """All rows of all entries of each sink; seconds of the steps, of all workers together, and their engines.

    ray: connected; rows: finished before, and where finished ones are noted.
    Raises JobError for a cluster that cannot be used, and what the work raises; HeadLost where outputs and notes stay.
    """
    try:
        with ClusterLine(ray, job, source, sinks, importance, rows, watcher) as line:
            carry(line, entries, job.max_buffer_bytes, watcher)
    except HeadLost:
        rows.leave()
        for sink in sinks:
            sink.leave()
        raise
    return line.clock, line.engines


def finished_rows(
    job: Job, source: TensorSource, sinks: Sequence[GGUFSink], watcher: Watcher
) -> FinishedRows:
    """Of the run that writes into these sinks, which are open."""
    decide = (
        inputs_of(source.paths),
        inputs_of([Path(job.imatrix)] if job.imatrix else []),
        (job.include_weights, job.exclude_weights, job.recipe.search, job.edits.digest, job.max_buffer_bytes),
        [file.header for sink in sinks for file in sink.places().files],
    )
    run = hashlib.sha256(repr(decide).encode()).hexdigest()
    finals = [final for sink in sinks for final in sink.finals]
    rows = FinishedRows(finals, run, job.resume and all(sink.was_kept for sink in sinks))
    if job.resume:
        if rows.damaged is not None:
            watcher.warn(f"{rows.damaged}: is damaged, so the run begins anew")
        if not rows.found:
            for sink in sinks:
                sink.begin_anew()
        watcher.note(f"{counted(len(rows.found), 'piece was', 'pieces were')} done before")
    return rows
