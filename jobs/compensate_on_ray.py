"""A compensation's walk spread over the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.gguf_io.shared import Places
from quantmill.jobs.carrier import as_workers_see
from quantmill.jobs.cluster import Node
from quantmill.jobs.compensate_carrier import CompensateCarrier, Task
from quantmill.jobs.compensated import is_searched
from quantmill.jobs.crew import Crew
from quantmill.jobs.elsewhere import Shares
from quantmill.jobs.far_walk import FarSolving, FarWalk
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.watcher import Watcher
from quantmill.models.model import LoadedModel
from quantmill.models.workers import Workers
from quantmill.recipe import Plan


@contextmanager
def walking_on_ray(
    ray: Any,
    job: Job,
    plan: Plan,
    loaded: LoadedModel,
    chunks: np.ndarray,
    two_streams: bool,
    output: Places,
    finished: Path,
    watcher: Watcher,
) -> Iterator[tuple[FarWalk, Workers]]:
    """The walk, and who solves. ray: connected; loaded: the same model here; output: opened; finished: where finished
    layers are put, beside it. Raises JobError for hosts that do not see the same model, or not the output."""
    device = loaded.device.type
    assert loaded.source is not None
    task = Task(
        *as_workers_see(job, loaded.source),
        chunks,
        two_streams,
        {entry.source: entry.type for entry in plan.entries if is_searched(entry)},
        output,
        finished.absolute(),
        device,
        1,
    )
    each = Shares(job.threads, device)

    def for_host(node: Node) -> Task:
        return replace(task, threads=each(node))

    with Crew(ray, CompensateCarrier, for_host, watcher, each) as crew:
        yield FarWalk(ray, crew, loaded, chunks), FarSolving(ray, crew, loaded.device)
