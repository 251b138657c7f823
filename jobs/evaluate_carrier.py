"""What a worker elsewhere does for an evaluation: the models, and batches of chunks through them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantmill.jobs.carrier import Input, require_like_head, told
from quantmill.jobs.passes import nll_of
from quantmill.jobs.pieces import Outcome
from quantmill.measure.compare import score_batch
from quantmill.measure.logits_file import LogitsFile
from quantmill.models.model import LoadedModel, load


@dataclass(frozen=True)
class Task:
    """paths: of the models, with has_base the base first; inputs: the hashes of their files."""

    paths: tuple[Path, ...]
    has_base: bool
    base_file: Path | None
    device: str
    dtype: str
    tokenizer: Path | None
    inputs: tuple[Input, ...]


class ScoreCarrier:
    """A crew's Carrier. Pieces: (None, batch, chunks) for all models against the base, or (number, batch, chunks) for
    one model alone; each on one thread of torch's."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened = ExitStack()
        self._models: list[LoadedModel] = []
        self._base_file: LogitsFile | None = None

    def ready(self, version: str) -> Outcome:
        return told(lambda: self._begin(version), [], abroad=True)

    def _begin(self, version: str) -> None:
        task = self._task
        require_like_head(version, task.inputs)
        if task.base_file is not None:
            self._base_file = LogitsFile(task.base_file)
        for path in task.paths:
            self._models.append(load(path, task.device, task.dtype, task.tokenizer))
            self._opened.callback(self._models[-1].close)

    def carry(self, piece: tuple[int | None, slice, np.ndarray]) -> Outcome:
        """Finds what compare.score_batch, or passes.nll_of, gives."""
        return told(lambda: self._score(*piece), [])

    def _score(self, number: int | None, batch: slice, chunks: np.ndarray) -> Any:
        torch.set_num_threads(1)  # of this thread: sums of several round otherwise
        with torch.no_grad():
            if number is not None:
                return nll_of(self._models[number], batch, chunks)
            if self._base_file is not None:
                return score_batch(self._base_file, self._models, batch, chunks)
            return score_batch(self._models[0], self._models[1:], batch, chunks)

    def finish(self) -> Outcome:
        return told(lambda: None, [])
