"""models.workers' Workers on a crew: pieces are carried elsewhere, and what is found is put together in order here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantmill.gguf_io import open_source
from quantmill.jobs.cluster import Node
from quantmill.jobs.crew import Crew
from quantmill.jobs.pieces import PYTHON, Hand
from quantmill.models.workers import Item, Out, Tell, Workers


class Elsewhere(Workers):
    """What a carrier finds for an item must be what the work here would.

    piece: what is sent for an item. put_together: item, and what was found → what the work here gives. amount: what
    the work here would tell of an item in all.
    """

    def __init__(
        self,
        crew: Crew,
        piece: Callable[[Any], Any] = lambda item: item,
        put_together: Callable[[Any, Any], Any] = lambda item, found: found,
        amount: Callable[[Any], int] = lambda item: 0,
    ) -> None:
        super().__init__(1)
        self._crew, self._piece, self._put_together, self._amount = crew, piece, put_together, amount

    def in_order(
        self, work: Callable[[Item, Tell], Out], items: Iterable[Item], told: Tell = lambda amount: None
    ) -> Iterator[Out]:
        waiting: deque[tuple[Item, Future[tuple[Hand, Any]]]] = deque()
        for item in items:
            waiting.append((item, self._crew.submit(self._piece(item))))
            if len(waiting) > self._crew.at_once:
                yield self._next(waiting, told)
        while waiting:
            yield self._next(waiting, told)

    def _next(self, waiting: deque[tuple[Any, Future[tuple[Hand, Any]]]], told: Tell) -> Any:
        item, done = waiting.popleft()
        found = done.result()[1]
        told(self._amount(item))
        return self._put_together(item, found)


@dataclass(frozen=True)
class Shares:
    """How many batches a host has at a time: a thread each on processors, one on a GPU."""

    threads: int | None
    device: str

    def __call__(self, node: Node) -> int:
        return min(self.threads or node.cpus, node.cpus) if self.device == "cpu" else 1


def files_of(model: Path) -> list[Path]:
    """What a model is read from: the weights of a directory, the files of a GGUF."""
    if model.is_dir():
        return sorted([*model.glob("*.safetensors"), *model.glob("*.json")])
    source = open_source(model)
    source.close()
    return list(source.paths)


def memory_of(models: Iterable[Path]) -> int:
    """Bytes that a carrier of these models takes; those of a GGUF stay mapped, which the system takes back."""
    weights = (file for model in models if model.is_dir() for file in model.glob("*.safetensors"))
    return PYTHON + sum(file.stat().st_size for file in weights)
