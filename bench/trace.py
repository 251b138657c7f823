"""What the steps of a compensation take: first layers of a model on one thread, each map of its work by itself."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from quantmill.gguf_io import open_source
from quantmill.jobs import compensate
from quantmill.jobs.compensate_request import Calibration, SilentLayers
from quantmill.jobs.finished_layers import finished_path
from quantmill.jobs.parcel import packed
from quantmill.jobs.quantize import Job
from quantmill.models import walked_layer
from quantmill.models.summing import MOST_GROUPS
from quantmill.models.workers import Workers

_CHUNKS = 4
_BATCHES = 32  # that a text of many chunks is run in


@dataclass(frozen=True)
class Step:
    """CPU seconds. alone: what went before it, which the head does by itself; seconds: of all its pieces, of the text
    those of a chunk. most: pieces of the text; rows: that are solved, else. n_bytes: what goes between the head and a
    host for it."""

    alone: float
    seconds: float
    most: int = 0
    rows: int = 0
    n_bytes: int = 0


class _Enough(Exception):
    """So many layers are traced."""


class _Few(SilentLayers):
    def __init__(self, layers: int) -> None:
        self.layers = layers

    def layer_done(self, done: int, n_layers: int) -> None:
        if done == self.layers:
            raise _Enough


class _Trace:
    """steps: so far. What is done to know how much is sent counts nowhere."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._since = time.process_time()

    def map(self, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        alone, found, took = time.process_time() - self._since, [], []
        for item in items:
            began = time.process_time()
            found.append(work(item))
            took.append(time.process_time() - began)
        maker = getattr(work, "func", work)
        if maker.__module__.startswith("quantmill.models."):
            most = MOST_GROUPS if "summed_up" in maker.__qualname__ else _BATCHES
            self.steps.append(Step(alone, sum(took) / _CHUNKS, most=most))
        else:
            rows = sum(item.shape[1] for item in items)
            self.steps.append(Step(alone, sum(took), rows=rows, n_bytes=len(packed(work))))
        self._since = time.process_time()
        return found

    def seen(self, sums: Any) -> None:
        """What the last step has found of the text."""
        self.steps[-1] = replace(self.steps[-1], n_bytes=len(packed(sums)))
        self._since = time.process_time()


@contextmanager
def _tracing(trace: _Trace) -> Iterator[None]:
    visit = walked_layer.Layer.visit

    def visited(layer: Any, *given: Any) -> Any:
        sums = visit(layer, *given)
        trace.seen(sums)
        return sums

    def mapped(workers: Workers, work: Any, items: Any) -> Any:
        return trace.map(work, items)

    with patch.object(walked_layer.Layer, "visit", visited), patch.object(Workers, "map", mapped):
        yield


def traced(job: Job, text: str, layers: int) -> tuple[list[Step], int]:
    """The steps of the first layers, and how many weights these have. Nothing is left of the output."""
    trace = _Trace()
    with suppress(_Enough), _tracing(trace):
        compensate.run(job, Calibration((text,), n_chunks=_CHUNKS), _Few(layers))
    shutil.rmtree(finished_path(job.output))
    source = open_source(job.source)
    names = tuple(f"blk.{i}." for i in range(layers))
    weights = sum(math.prod(spec.shape) for spec in source.specs() if spec.name.startswith(names))
    source.close()
    first = next(
        i for i, step in enumerate(trace.steps) if step.n_bytes
    )  # before it the text enters the model
    return [replace(trace.steps[first], alone=0.0), *trace.steps[first + 1 :]], weights
