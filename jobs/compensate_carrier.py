"""What a worker elsewhere does for a compensation: a share of the text through the layers, and codes of some rows.

Any worker can do any piece. One that is asked for batches whose streams it has not, walks them through the layers that
are finished first, as a run does that goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from quantmill.calibrate.moments import Moments, MomentsOf
from quantmill.gguf_io.shared import Places, require_seen
from quantmill.jobs.carrier import Input, require_like_head, told
from quantmill.jobs.compensate_plan import load_model
from quantmill.jobs.edits import open_model
from quantmill.jobs.far_position import Change, Position
from quantmill.jobs.finished_layers import read_layer
from quantmill.jobs.parcel import Parcel, packed, unpacked
from quantmill.jobs.pieces import Outcome
from quantmill.jobs.quantize_request import Job
from quantmill.jobs.stored_made import made_of
from quantmill.models.places import Place
from quantmill.models.walk import Walk
from quantmill.models.workers import Workers, threads_for


@dataclass(frozen=True)
class Task:
    """chunks: [n_chunk, n_ctx] i32, all of them; types: of the tensors by their names in the source; finished: the
    directory of finished layers, beside the output; device: its kind."""

    job: Job
    inputs: tuple[Input, ...]
    chunks: np.ndarray
    two_streams: bool
    types: Mapping[str, str]
    output: Places
    finished: Path
    device: str
    threads: int


@dataclass(frozen=True)
class Share:
    """Where a worker stands: before or in a layer, with these batches, and what was changed in the layer so far."""

    layer: int
    batches: tuple[int, ...]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Enter:
    """Finds the places of the layer, as the first of the batches has them, packed. norms: with those before them."""

    share: Share
    norms: bool = False

    def done_by(self, carrier: CompensateCarrier) -> bytes:
        return carrier.places(self)


@dataclass(frozen=True)
class Part:
    """Batches that are added to `start`, which is of the batches of the same group before them, or to nothing."""

    batches: range
    start: Parcel | None = None


@dataclass(frozen=True)
class Visit:
    """Finds Moments of each part, packed. places: of the layer, `place` the one; none for the output matrix."""

    share: Share
    places: tuple[Place, ...]
    place: int
    make: MomentsOf
    parts: tuple[Part, ...]

    def done_by(self, carrier: CompensateCarrier) -> bytes:
        return carrier.moments(self)


@dataclass(frozen=True)
class Solve:
    """Finds what work(item) gives, packed. item: packed."""

    work: Parcel
    item: bytes

    def done_by(self, carrier: CompensateCarrier) -> bytes:
        return carrier.solved(self)


class CompensateCarrier:
    """A crew's Carrier."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened = ExitStack()
        self._warnings: list[str] = []
        self._walking, self._fetching = Lock(), Lock()
        self._work: tuple[str, Any] = ("", None)

    def ready(self, version: str) -> Outcome:
        return told(lambda: self._begin(version), self._warnings, abroad=True)

    def _begin(self, version: str) -> None:
        task, job = self._task, self._task.job
        require_like_head(version, task.inputs)
        require_seen(task.output)
        torch.set_num_threads(1)  # sums of several round otherwise
        source = open_model(job.source, job.edits, job.later)
        self._opened.callback(source.close)
        self._device = torch.device(task.device)
        loaded = load_model(job, source, self._device)
        workers = Workers(threads_for(self._device.type, task.threads))
        self._opened.callback(workers.close)
        self._position = Position(
            Walk(loaded, task.chunks, workers.map, task.two_streams, ()), self._changes_of
        )

    def _changes_of(self, layer: int) -> dict[str, tuple[str, np.ndarray, np.ndarray | None]] | None:
        """Of a layer that is finished."""
        task = self._task
        if layer in task.job.recipe.prune_layers:
            return None
        made = made_of(read_layer(task.finished, layer), task.types)
        return {one.name: (one.type, one.blocks, one.in_blocks) for one in made}

    def carry(self, piece: Enter | Visit | Solve) -> Outcome:
        return told(lambda: piece.done_by(self), self._warnings)

    def finish(self) -> Outcome:
        return told(lambda: None, self._warnings)

    def places(self, piece: Enter) -> bytes:
        with self._walking:
            self._stand(piece.share)
            layer = self._position.layer
            found = layer.with_norms() if piece.norms else layer.places
            return packed([replace(place, module=torch.nn.Identity()) for place in found])

    def moments(self, piece: Visit) -> bytes:
        with self._walking:
            self._stand(piece.share)
            sums = [self._start(part, piece.make) for part in piece.parts]
            added = [(one, part.batches) for one, part in zip(sums, piece.parts, strict=True)]
            if piece.places:
                self._position.add(piece.places, piece.place, piece.make.part, added)
            else:
                self._position.add_to_output(added)
            return packed(sums)

    def _start(self, part: Part, make: MomentsOf) -> Moments:
        if part.start is None:
            return make()
        found: Moments = part.start.open(self._device)
        return found

    def _stand(self, share: Share) -> None:
        torch.set_num_threads(1)  # of this thread
        self._position.stand(share.layer, share.batches, share.changes)

    def solved(self, piece: Solve) -> bytes:
        torch.set_num_threads(1)  # of this thread
        work, item = self._work_of(piece.work), unpacked(piece.item, self._device)
        with torch.no_grad():
            return packed(work(item))

    def _work_of(self, parcel: Parcel) -> Any:
        """Of the same parcel for several pieces, which follow each other."""
        with self._fetching:
            if self._work[0] != parcel.name:
                self._work = parcel.name, parcel.open(self._device)
            return self._work[1]
