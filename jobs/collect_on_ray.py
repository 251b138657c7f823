"""Batches of chunks spread over the workers of a Ray cluster, and their sums put together in the order of the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantmill.imatrix.collect import Settings
from quantmill.imatrix.recorder import Recorder
from quantmill.jobs.carrier import inputs_of
from quantmill.jobs.cluster import Node, connected
from quantmill.jobs.collect_carrier import CollectCarrier, Task, places_of
from quantmill.jobs.collect_load import Loading
from quantmill.jobs.crew import Crew, Hand
from quantmill.jobs.errors import JobError
from quantmill.jobs.watcher import Watcher
from quantmill.models.model import LoadedModel
from quantmill.models.workers import Item, Out, Tell, Workers


class Elsewhere(Workers):
    """Workers whose pieces a crew carries. What it finds for an item must be what the work here would."""

    def __init__(self, crew: Crew, put_together: Callable[[Any, Any], Any]) -> None:
        super().__init__(1)
        self._crew, self._put_together = crew, put_together

    def in_order(
        self, work: Callable[[Item, Tell], Out], items: Iterable[Item], told: Tell = lambda amount: None
    ) -> Iterator[Out]:
        waiting: deque[tuple[Item, Future[tuple[Hand, Any]]]] = deque()
        for item in items:
            waiting.append((item, self._crew.submit(item)))
            if len(waiting) > self._crew.at_once:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[tuple[Any, Future[tuple[Hand, Any]]]]) -> Any:
        item, done = waiting.popleft()
        return self._put_together(item, done.result()[1])


@dataclass(frozen=True)
class _Shares:
    """How many batches a host has at a time: a thread each on a processor, one on a GPU."""

    threads: int | None
    device: str

    def __call__(self, node: Node) -> int:
        return min(self.threads or node.cpus, node.cpus) if self.device == "cpu" else 1


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

    Raises JobError for a cluster that cannot be used, or whose hosts see another model.
    """
    here = Recorder(loaded.table, settings.with_means, settings.process_output, settings.route_all)
    here.attach(loaded.model)
    here.detach()
    files = files_of(loading.model)
    loading = replace(loading, model=loading.model.absolute(), device=loaded.device.type)
    task = Task(loading, inputs_of(files), settings)
    with (
        connected(address, threads) as ray,
        Crew(ray, CollectCarrier, lambda node: task, watcher, _Shares(threads, loaded.device.type)) as crew,
    ):
        if any(found != places_of(here) for found in crew.found):
            raise JobError(
                "the workers come to other matrices of the model than this process; install the same"
            )
        yield Elsewhere(crew, lambda batch, found: (batch, *found))


def files_of(model: Path) -> list[Path]:
    """What a model is read from: the weights of a directory, the files of a GGUF."""
    if model.is_dir():
        return sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
    from quantmill.gguf_io import open_source

    source = open_source(model)
    source.close()
    return list(source.paths)
