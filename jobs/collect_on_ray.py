"""Batches of chunks spread over the workers of a Ray cluster, and their sums put together in the order of the text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from quantmill.imatrix.collect import Settings
from quantmill.jobs.carrier import from_root, inputs_of
from quantmill.jobs.cluster import connected
from quantmill.jobs.collect_carrier import CollectCarrier, Task, places_of
from quantmill.jobs.collect_load import Loading
from quantmill.jobs.crew import Crew
from quantmill.jobs.elsewhere import Elsewhere, Shares, files_of, memory_of
from quantmill.jobs.errors import ClusterError
from quantmill.jobs.watcher import Watcher
from quantmill.models.model import LoadedModel
from quantmill.models.workers import Workers


@contextmanager
def workers_on_ray(
    address: str,
    threads: int | None,
    loading: Loading,
    settings: Settings,
    loaded: LoadedModel,
    watcher: Watcher,
) -> Iterator[Workers]:
    """Workers for imatrix.collect. loaded: the same model here, of which nothing is run.

    Raises ClusterError for a cluster that cannot be used, or whose hosts see another model.
    """
    here = settings.recorder(loaded.table)
    here.attach(loaded.model)
    here.detach()
    files = files_of(loading.model)
    loading = from_root(replace(loading, device=loaded.device.type, dtype=loaded.computing))
    task = Task(loading, inputs_of(files), settings)
    with (
        connected(address, threads) as ray,
        Crew(
            ray,
            CollectCarrier,
            lambda node: task,
            watcher,
            Shares(threads, loaded.device.type),
            memory=memory_of([loading.model]),
        ) as crew,
    ):
        if any(found != places_of(here) for found in crew.found):
            raise ClusterError(
                "the workers come to other matrices of the model than this process; install the same"
            )
        yield Elsewhere(crew, put_together=lambda batch, found: (batch, *found))
