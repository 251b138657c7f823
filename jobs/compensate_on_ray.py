"""A compensation's walk spread over the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.jobs.carrier import inputs_of
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
    finished: Path,
    watcher: Watcher,
) -> Iterator[tuple[FarWalk, Workers]]:
    """The walk, and who solves. ray: connected; loaded: the same model here; finished: where finished layers are put,
    seen by all hosts. Raises JobError for hosts that do not see the same model."""
    device = loaded.device.type
    assert loaded.source is not None
    task = Task(
        replace(job, source=str(Path(job.source).absolute())),
        inputs_of(loaded.source.paths),
        chunks,
        two_streams,
        {entry.source: entry.type for entry in plan.entries if is_searched(entry)},
        finished.absolute(),
        device,
        1,
    )
    each = Shares(job.threads, device)

    def for_host(node: Node) -> Task:
        return replace(task, threads=each(node))

    with Crew(ray, CompensateCarrier, for_host, watcher, each) as crew:
        yield FarWalk(ray, crew, loaded, chunks), FarSolving(ray, crew, loaded.device)
