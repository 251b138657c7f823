"""What a worker elsewhere does for a quantization: an assembly line between a model and an output that both sides see.

Nothing here knows what brings the slabs; jobs.cluster_line does that with Ray.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from quantmill import __version__
from quantmill.errors import QuantmillError
from quantmill.gguf_io.shared import Places, SharedRows
from quantmill.imatrix.matrix import ImportanceMatrix
from quantmill.jobs.edits import open_model
from quantmill.jobs.errors import JobError
from quantmill.jobs.line import Line
from quantmill.jobs.quantize_request import Job, way_out
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.trust import DeviceFault
from quantmill.recipe.slabs import Slab

_ENDS = 1 << 20  # bytes at both ends of a file that its hash is made of
AT_ONCE = 4  # slabs under way in one worker: as many as a line of one quantizer takes


@dataclass(frozen=True)
class Input:
    """A file that a task reads, and what tells it from another of that name."""

    path: str
    n_bytes: int
    ends: str


@dataclass(frozen=True)
class Task:
    """All that slabs are made from: the job, the hashes of the files it reads, the outputs that it writes into."""

    job: Job
    inputs: tuple[Input, ...]
    outputs: tuple[Places, ...]
    importance: ImportanceMatrix | None
    threads: int


@dataclass(frozen=True)
class Outcome:
    """Of a slab: what is to be said, and what went wrong (`fault`: of a device), in words."""

    host: str
    warnings: tuple[str, ...] = ()
    error: str | None = None
    fault: bool = False


def inputs_of(paths: Iterable[Path]) -> tuple[Input, ...]:
    """Size and a hash of both ends of each file. Raises OSError."""
    return tuple(_input(os.path.abspath(path)) for path in paths)


def _input(path: str) -> Input:
    with open(path, "rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        found = hashlib.sha256(file.read(_ENDS))
        file.seek(max(0, n_bytes - _ENDS))
        found.update(file.read(_ENDS))
    return Input(path, n_bytes, found.hexdigest())


class Carrier:
    """Carries slabs of one task. Opens what it needs with the first one; what goes wrong is told in the outcome."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened = ExitStack()
        self._rows: list[SharedRows] = []
        self._line: Line | None = None
        self._warnings: list[str] = []
        self._host = platform.node()

    def ready(self, version: str) -> tuple[Outcome, tuple[Engine, ...]]:
        """Look at everything before the first slab. version: the head's."""
        if version != __version__:
            return self._failed(
                JobError(f"has quantmill {__version__}, the head {version}; install the same on all hosts")
            ), ()
        try:
            return self._outcome(), self._begin()
        except (QuantmillError, OSError) as error:
            return self._failed(error), ()

    def carry(self, slab: Slab) -> Outcome:
        try:
            if self._line is None:
                self._begin()
            assert self._line is not None
            self._line.submit(slab).result()
        except (QuantmillError, OSError) as error:
            return self._failed(error)
        return self._outcome()

    def finish(self) -> tuple[Outcome, Mapping[str, float]]:
        """All rows on the disk; seconds of each step since this was asked for last."""
        try:
            for rows in self._rows:
                rows.sync()
        except QuantmillError as error:
            return self._failed(error), {}
        seconds = {} if self._line is None else self._line.clock.taken()
        return self._outcome(), seconds

    def close(self) -> None:
        self._opened.close()

    def _begin(self) -> tuple[Engine, ...]:
        task, job = self._task, self._task.job
        for input in task.inputs:
            _require_same(input)
        self._rows = [SharedRows(places) for places in task.outputs]
        for rows in self._rows:
            self._opened.callback(rows.close)
        source = open_model(job.source, job.edits, job.later)
        self._opened.callback(source.close)
        engines = choose_engines(job.device)
        tell, strict = self._warnings.append, job.strict_device
        quantizers = [
            quantizer
            for engine in engines
            for quantizer in row_quantizers(engine, task.threads, job.recipe.search, tell, strict)
        ]
        line = Line(source, self._rows, task.importance, quantizers, lambda entry: way_out(job, entry))
        self._line = self._opened.enter_context(line)
        return engines

    def _outcome(self) -> Outcome:
        said, self._warnings[:] = tuple(self._warnings), []
        return Outcome(self._host, said)

    def _failed(self, error: Exception) -> Outcome:
        said = (
            str(error) if isinstance(error, JobError) and self._line is not None else f"{self._host}: {error}"
        )
        return Outcome(self._host, (), said, isinstance(error, DeviceFault))


def _require_same(wanted: Input) -> None:
    try:
        found = _input(wanted.path)
    except OSError as error:
        raise JobError(
            f"{wanted.path}: cannot be read here ({error.strerror}); put the model into a file system that all hosts "
            "see under this name"
        ) from error
    if found != wanted:
        raise JobError(f"{wanted.path}: is another file here than on the head ({found.n_bytes} bytes)")
