"""The rows of a quantization, carried by the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantmill.gguf_io import GGUFSink, TensorSource
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.cluster_line import ClusterLine
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
    watcher: Watcher,
) -> tuple[Clock, tuple[Engine, ...]]:
    """All rows of all entries of each sink; seconds of the steps, of all workers together, and their engines.

    ray: connected. Raises JobError for a cluster that cannot be used, and what the work raises.
    """
    with ClusterLine(ray, job, source, sinks, importance, watcher) as line:
        carry(line, entries, job.max_buffer_bytes, watcher)
        line.finish()
    return line.clock, line.engines
