"""The assembly line of this machine: read → quantize → write, a slab of rows at a time, the three steps overlapping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quantmill.gguf_io import TensorSource
from quantmill.jobs.errors import JobError
from quantmill.jobs.quantize_request import Job, way_out
from quantmill.qkernels import QuantizeError, to_float32
from quantmill.qkernels.checks import require_finite, require_finite_scales
from quantmill.qkernels.engines import Engine, RowQuantizer
from quantmill.qkernels.plain import all_finite, read_in
from quantmill.qkernels.rows import row_quantizers
from quantmill.qkernels.types import TYPES, DeviceFault, NotFiniteError, TooLargeError
from quantmill.recipe import PlanEntry
from quantmill.recipe.slabs import Slab

if TYPE_CHECKING:
    from quantmill.imatrix.store import ImportanceMatrix

# Handfuls of slabs under way beside those being quantized: one read, one waiting, one written.
_IN_TRANSIT = 3
# Bytes of the source that go from thread to thread at once: a tensor of a small model is read in less time than it
# takes to hand it on.
_HANDFUL = 8 << 20


class Clock:
    """Seconds that each step was busy; of several quantizers, all together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = Lock()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add({step: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        with self._lock:
            for step, more in seconds.items():
                self.seconds[step] = self.seconds.get(step, 0.0) + more

    def taken(self) -> dict[str, float]:
        """What it shows; then it begins at zero."""
        with self._lock:
            seconds, self.seconds = self.seconds, {}
        return seconds


class RowSink(Protocol):
    """An output that takes rows at their places."""

    def write_rows(self, name: str, first_row: int, data: np.ndarray) -> None:
        """Rows of a tensor, from `first_row` on. Raises GGUFError."""


@dataclass(frozen=True)
class Read:
    """Rows of a slab: `loaded` in some type for the search, `copied` as the output has them, where one wants them.
    importance: of the columns, for entries that are weighed."""

    loaded: np.ndarray
    type: str
    copied: np.ndarray | None = None
    importance: np.ndarray | None = None


class Line:
    """A jobs.worker.Worker: a thread reads, one a quantizer works, one writes. A context manager.

    sinks: the outputs, in the order of a slab's entries. What several of them want in one type is made once.
    way_out: how to give a tensor another type.
    """

    handful = _HANDFUL

    def __init__(
        self,
        source: TensorSource,
        sinks: Sequence[RowSink],
        importance: ImportanceMatrix | None,
        quantizers: Sequence[RowQuantizer],
        way_out: Callable[[PlanEntry], str],
    ) -> None:
        self.clock = Clock()
        self._source = source
        self._sinks = sinks
        self._importance = importance
        self._way_out = way_out
        self._columns: tuple[str, np.ndarray | None] = ("", None)  # importance of the tensor being read
        self._pools = ExitStack()
        self._reader, self._writer, *workers = (ThreadPoolExecutor(1) for _ in range(2 + len(quantizers)))
        for pool in (self._reader, *workers, self._writer):
            self._pools.callback(pool.shutdown, cancel_futures=True)
        self._quantizers = quantizers
        self._devices = cycle(zip(workers, quantizers, strict=True))
        self.at_once = self.in_one_memory = _IN_TRANSIT + len(quantizers)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pools.close()

    def submit(self, slabs: Sequence[Slab]) -> Future[None]:
        worker, quantizer = next(self._devices)
        read = self._reader.submit(self._read_all, slabs, quantizer)
        made = worker.submit(self._make_all, slabs, quantizer, read)
        return self._writer.submit(self._write_all, slabs, made)

    def finish(self) -> None:
        for quantizer in self._quantizers:
            quantizer.finish()

    def _read_all(self, slabs: Sequence[Slab], quantizer: RowQuantizer) -> list[Read]:
        with self.clock("read"):
            return [self._read(slab, quantizer) for slab in slabs]

    def _read(self, slab: Slab, quantizer: RowQuantizer) -> Read:
        """The rows as the next step wants them, and their importance."""
        place = slab.source, slab.first_row, slab.n_rows
        copied = None
        if not all(entry.converted for entry in slab.entries):
            copied = self._source.read(*place)
        if copied is not None and not any(entry.converted for entry in slab.entries):
            return Read(read_in(copied), slab.entries[0].source_type, copied)
        raw, type = self._source.fetch(*place)
        return Read(quantizer.load(raw, type), type, copied, self._importance_of(slab))

    def _importance_of(self, slab: Slab) -> np.ndarray | None:
        entry = next((entry for entry in slab.entries if entry.importance_name is not None), None)
        if entry is None or entry.importance_name is None or self._importance is None:
            return None
        name = entry.importance_name
        if self._columns[0] != name:
            self._columns = (name, self._importance.columns(name, entry.n_cols, entry.n_matrices))
        columns = self._columns[1]
        return None if columns is None else columns[slab.matrix]

    def _make_all(
        self, slabs: Sequence[Slab], quantizer: RowQuantizer, read: Future[list[Read]]
    ) -> list[list[np.ndarray]]:
        found = read.result()
        with self.clock("quantize"):
            return [self._make(slab, quantizer, one) for slab, one in zip(slabs, found, strict=True)]

    def _make(self, slab: Slab, quantizer: RowQuantizer, found: Read) -> list[np.ndarray]:
        made: dict[tuple[str, bool], np.ndarray] = {}
        if found.copied is not None:
            require_sound_rows(slab, found.copied)
        for entry in slab.entries:
            kind = _kind(entry)
            if entry.converted and kind not in made:
                made[kind] = self._quantized(slab, entry, quantizer, found)
        copied = found.loaded if found.copied is None else found.copied
        return [made[_kind(entry)] if entry.converted else copied for entry in slab.entries]

    def _quantized(self, slab: Slab, entry: PlanEntry, quantizer: RowQuantizer, read: Read) -> np.ndarray:
        importance = None if entry.importance_name is None else read.importance
        try:
            return quantizer.quantize(read.loaded, read.type, entry.type, importance)
        except DeviceFault:  # of the device, not of this tensor
            raise
        except QuantizeError as error:
            raise self._explained(error, slab, entry, read) from error

    def _explained(self, error: QuantizeError, slab: Slab, entry: PlanEntry, read: Read) -> JobError:
        """The error of an engine, which knows the rows of a slab, in the words of the model: tensor and row."""
        if isinstance(error, NotFiniteError):
            return _damaged(error, slab)
        if isinstance(error, TooLargeError):
            from quantmill.jobs.advice import unfit_row  # said to few

            weights = to_float32(read.loaded[error.row : error.row + 1], read.type)[0]
            importance = None if entry.importance_name is None else read.importance
            return unfit_row(entry, slab.first_row + error.row, weights, importance, self._way_out(entry))
        return JobError(f"{entry.name}: {error}")

    def _write_all(self, slabs: Sequence[Slab], made: Future[list[list[np.ndarray]]]) -> None:
        found = made.result()
        with self.clock("write"):
            for slab, parts in zip(slabs, found, strict=True):
                for sink, entry, part in zip(self._sinks, slab.entries, parts, strict=True):
                    sink.write_rows(entry.name, slab.first_row, part)
                self._source.release(slab.source, slab.first_row, slab.n_rows)


def line_of(
    job: Job,
    source: TensorSource,
    sinks: Sequence[RowSink],
    importance: ImportanceMatrix | None,
    engines: Sequence[Engine],
    warn: Callable[[str], None],
) -> Line:
    """The assembly line of a job, or of several that are alike, on this machine."""
    quantizers = [
        quantizer
        for engine in engines
        for quantizer in row_quantizers(engine, job.threads, job.recipe.search, warn, job.strict_device)
    ]
    return Line(source, sinks, importance, quantizers, lambda entry: way_out(job, entry))


def _kind(entry: PlanEntry) -> tuple[str, bool]:
    """Entries of one slab that agree in this have the same bytes."""
    return entry.type, entry.importance_name is not None


def _damaged(error: NotFiniteError, slab: Slab) -> JobError:
    return JobError(
        f"{slab.entries[0].name}: {error.value} in row {slab.first_row + error.row}, column {error.column}; "
        "the model is damaged: convert or fetch it again"
    )


def require_sound_rows(slab: Slab, raw: np.ndarray) -> None:
    """Rows as they are stored, u8 [n_rows, row_bytes], are checked as llama-quantize checks those it copies: finite
    numbers, finite scales. Raises JobError naming tensor and row."""
    entry = slab.entries[0]
    type = TYPES.get(entry.source_type)
    if type is None:  # integers
        return
    try:
        if type.family != "plain":
            require_finite_scales(raw, type)
        elif not all_finite(raw, type):
            require_finite(to_float32(raw, type.name))
    except NotFiniteError as error:
        raise _damaged(error, slab) from error
    except TooLargeError:
        raise JobError(
            f"{entry.name}: rows {slab.first_row} to {slab.first_row + slab.n_rows - 1} hold a scale that is NaN "
            "or infinite; the model is damaged: convert or fetch it again"
        ) from None
