"""What a worker elsewhere does for a quantization: an assembly line between a model and an output that both sides see.

Nothing here knows what brings the slabs; jobs.cluster_line does that with Ray.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from quantmill import __version__
from quantmill.errors import QuantmillError
from quantmill.gguf_io import TensorSource
from quantmill.gguf_io.shared import Places, SharedRows
from quantmill.imatrix.matrix import ImportanceMatrix
from quantmill.jobs.edits import open_model
from quantmill.jobs.errors import JobError
from quantmill.jobs.line import Line, line_of
from quantmill.jobs.pieces import Outcome
from quantmill.jobs.quantize_request import Job
from quantmill.qkernels.engines import Engine, choose_engines
from quantmill.qkernels.types import DeviceFault
from quantmill.recipe.slabs import Slab

_ENDS = 1 << 20  # bytes at both ends of a file that its hash is made of
_BETWEEN = 64  # places between them, of a file of which every host has its own copy
_PLACE = 1 << 16  # bytes of each
AT_ONCE = 4  # slabs under way in one worker: as many as a line of one quantizer takes


@dataclass(frozen=True)
class Input:
    """A file that a task reads, and what tells it from another of that name. ends: a hash of both ends, and of
    n_between places between them."""

    path: str
    n_bytes: int
    ends: str
    n_between: int = 0


@dataclass(frozen=True)
class Task:
    """All that slabs are made from: the job, the hashes of the files it reads, the outputs that it writes into."""

    job: Job
    inputs: tuple[Input, ...]
    outputs: tuple[Places, ...]
    importance: ImportanceMatrix | None
    threads: int


def inputs_of(paths: Iterable[Path], n_between: int = 0) -> tuple[Input, ...]:
    """Size and a hash of both ends of each file, and of places between them. Raises OSError."""
    return tuple(_input(_from_root(path), n_between) for path in paths)


def _input(path: str, n_between: int) -> Input:
    with open(path, "rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        found = hashlib.sha256(file.read(_ENDS))
        for place in range(1, n_between + 1):
            file.seek(n_bytes * place // (n_between + 1))
            found.update(file.read(_PLACE))
        file.seek(max(0, n_bytes - _ENDS))
        found.update(file.read(_ENDS))
    return Input(path, n_bytes, found.hexdigest(), n_between)


def from_root(value: Any) -> Any:
    """The same with the paths in it, in dataclasses and tuples too, from the root on: workers run in other folders."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, tuple):
        return tuple(map(from_root, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: from_root(getattr(value, one.name)) for one in fields(value)})
    return value


def quantize_from_root(job: Job) -> Job:
    """The same of a job, whose inputs are named by words."""
    return replace(
        job,
        source=_from_root(job.source),
        output=job.output.absolute(),
        imatrix=None if job.imatrix is None else _from_root(job.imatrix),
        inputs=tuple(map(_from_root, job.inputs)),
    )


def _from_root(path: str | Path) -> str:
    return str(Path(path).absolute())  # not abspath, for which .. behind a link leads elsewhere


def as_workers_see(job: Job, source: TensorSource) -> tuple[Job, tuple[Input, ...]]:
    """The job with its source where the workers have it, and the files that they must find there, settings of a
    checkpoint among them: they decide what its tensors become."""
    job = quantize_from_root(job)
    here = Path(job.source)
    folder, settings = (here, sorted(here.glob("*.json"))) if here.is_dir() else (here.parent, [])
    if job.source_on is None:
        return job, inputs_of([*source.paths, *settings])
    there = job.source_on / here.relative_to(folder)
    return replace(job, source=str(there)), tuple(
        replace(one, path=str(job.source_on / Path(one.path).relative_to(folder)))
        for one in inputs_of([*source.paths, *settings], _BETWEEN)
    )


class SlabCarrier:
    """A crew's Carrier: carries slabs of one task. Opens what it needs when it is asked first."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened = ExitStack()
        self._rows: list[SharedRows] = []
        self._line: Line | None = None
        self._warnings: list[str] = []

    def ready(self, version: str) -> Outcome:
        """Finds the engines."""
        return told(lambda: self._begin(version), self._warnings, abroad=True)

    def carry(self, piece: Slab) -> Outcome:
        assert self._line is not None
        line = self._line
        return told(lambda: line.submit([piece]).result(), self._warnings)

    def finish(self) -> Outcome:
        """All rows are on the disk. Finds the seconds of each step since this was asked last."""
        return told(self._finish, self._warnings, abroad=True)

    def _finish(self) -> Mapping[str, float]:
        assert self._line is not None
        self._line.finish()
        for rows in self._rows:
            rows.sync()
        return self._line.clock.taken()

    def close(self) -> None:
        self._opened.close()

    def _begin(self, version: str) -> tuple[Engine, ...]:
        task, job = self._task, self._task.job
        require_like_head(version, task.inputs)
        self._rows = [SharedRows(places) for places in task.outputs]
        for rows in self._rows:
            self._opened.callback(rows.close)
        source = open_model(job.source, job.edits, job.later)
        self._opened.callback(source.close)
        engines = choose_engines(job.device)
        line = line_of(
            replace(job, threads=task.threads),
            source,
            self._rows,
            task.importance,
            engines,
            self._warnings.append,
        )
        self._line = self._opened.enter_context(line)
        return engines


def told(work: Callable[[], Any], warnings: list[str], abroad: bool = False) -> Outcome:
    """What work finds, as an outcome. warnings: taken from there. abroad: errors are of this host, not of the model."""
    host = platform.node()
    try:
        outcome = Outcome(host, work())
    except (QuantmillError, OSError) as wrong:
        is_ours, of_host = abroad or not isinstance(wrong, JobError), abroad or isinstance(wrong, OSError)
        said = f"{host}: {wrong}" if is_ours else str(wrong)
        outcome = Outcome(host, error=said, fault=isinstance(wrong, DeviceFault), of_host=of_host)
    outcome = replace(outcome, warnings=tuple(warnings))
    warnings.clear()
    return outcome


def require_like_head(version: str, inputs: Iterable[Input]) -> None:
    """Raises JobError where this host has another quantmill, or does not see the same files."""
    if version != __version__:
        raise JobError(f"has quantmill {__version__}, the head {version}; install the same on all hosts")
    for input in inputs:
        _require_same(input)


def _require_same(wanted: Input) -> None:
    try:
        found = _input(wanted.path, wanted.n_between)
    except OSError as error:
        raise JobError(
            f"{wanted.path}: cannot be read here ({error.strerror}); put the model into a file system that all hosts "
            "see under this name, or a copy of it there"
        ) from error
    if found != wanted:
        why = "other content"
        if found.n_bytes != wanted.n_bytes:
            why = f"{found.n_bytes} bytes instead of {wanted.n_bytes}"
        raise JobError(f"{wanted.path}: is another file here than on the head ({why})")
