"""What a worker elsewhere does for an importance matrix: a model, and batches of chunks through it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quantmill.imatrix.collect import Settings, run_batch
from quantmill.imatrix.recorder import Recorder
from quantmill.imatrix.sums import Batch
from quantmill.jobs.carrier import Input, require_like_head, told
from quantmill.jobs.collect_load import Loading, loaded_model
from quantmill.jobs.pieces import Outcome
from quantmill.jobs.watcher import Silent


@dataclass(frozen=True)
class Task:
    """All that sums are made from, but for the chunks: the model, the hashes of its files, the settings."""

    loading: Loading
    inputs: tuple[Input, ...]
    settings: Settings


class _Noting(Silent):
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def note(self, line: str) -> None:
        self._lines.append(line)

    warn = note


class CollectCarrier:
    """A crew's Carrier: pieces are batches [n_seq, n_ctx] i32, each on one thread of torch's."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened = ExitStack()
        self._warnings: list[str] = []
        self._model: Any = None

    def ready(self, version: str) -> Outcome:
        """Finds the tensors that each place of the recorder serves."""
        return told(lambda: self._begin(version), self._warnings, abroad=True)

    def _begin(self, version: str) -> tuple[tuple[str, ...], ...]:
        task = self._task
        require_like_head(version, task.inputs)
        loaded = self._opened.enter_context(loaded_model(task.loading, _Noting(self._warnings)))
        self._recorder = task.settings.recorder(loaded.table)
        self._recorder.attach(loaded.model)
        self._model, self._device = loaded.model, loaded.device
        return places_of(self._recorder)

    def carry(self, piece: np.ndarray) -> Outcome:
        """Finds −log p of the scored tokens, and the sums of the batch, on the host."""
        return told(lambda: self._run(piece), self._warnings)

    def _run(self, batch: np.ndarray) -> tuple[np.ndarray | None, dict[int, Batch]]:
        torch.set_num_threads(1)  # of this thread: sums of several round otherwise
        self._recorder.taken()
        nll = run_batch(self._model, batch, self._task.settings, self._device)
        return nll, {index: _on_host(sums) for index, sums in self._recorder.taken().items()}

    def finish(self) -> Outcome:
        return told(lambda: None, self._warnings)


def _on_host(sums: Batch) -> Batch:
    return Batch(sums.square.cpu(), None if sums.plain is None else sums.plain.cpu(), sums.counts)


def places_of(recorder: Recorder) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(taker.name for taker in place.takers) for place in recorder.inputs)
