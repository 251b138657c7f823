"""The assembly line: read → quantize → write, a slab of rows at a time, the three steps overlapping."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from threading import Lock

import numpy as np

from quantmill.gguf_io import GGUFSink, TensorSource
from quantmill.imatrix.store import ImportanceMatrix
from quantmill.jobs.advice import unfit_row
from quantmill.jobs.errors import JobError
from quantmill.jobs.watcher import PlanWatcher
from quantmill.qkernels import QuantizeError, to_float32
from quantmill.qkernels.checks import require_finite, require_finite_scales
from quantmill.qkernels.engines import RowQuantizer
from quantmill.qkernels.trust import DeviceFault
from quantmill.qkernels.types import TYPES, NotFiniteError, TooLargeError
from quantmill.recipe import PlanEntry
from quantmill.recipe.slabs import Slab, slabs

# Slabs under way beside those being quantized: one read, one waiting, one written.
_SLABS_IN_TRANSIT = 3


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
            with self._lock:
                self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Read:
    """Rows of a slab in some type, and what weighs their columns."""

    rows: np.ndarray
    type: str
    importance: np.ndarray | None = None


class Line:
    """The assembly line: a thread reads, one a quantizer works, one writes; slabs leave in the order they came."""

    def __init__(
        self,
        source: TensorSource,
        sink: GGUFSink,
        importance: ImportanceMatrix | None,
        quantizers: Sequence[RowQuantizer],
        watcher: PlanWatcher,
        way_out: Callable[[PlanEntry], str],
    ) -> None:
        self.clock = Clock()
        self._source = source
        self._sink = sink
        self._importance = importance
        self._quantizers = quantizers
        self._watcher = watcher
        self._way_out = way_out  # how to give a tensor another type
        self._columns: tuple[str, np.ndarray | None] = ("", None)  # importance of the tensor being read

    def carry(self, entries: Sequence[PlanEntry], max_bytes: int) -> None:
        """All rows of all entries from source to sink. Raises the first error; then nothing more is started."""
        in_flight = _SLABS_IN_TRANSIT + len(self._quantizers)
        under_way: deque[Future[None]] = deque()
        with ExitStack() as pools:
            reader, writer, *workers = (ThreadPoolExecutor(1) for _ in range(2 + len(self._quantizers)))
            for pool in (reader, *workers, writer):
                pools.callback(pool.shutdown, cancel_futures=True)
            devices = cycle(zip(workers, self._quantizers, strict=True))
            for slab in slabs(entries, max_bytes // in_flight):
                worker, quantizer = next(devices)
                read = reader.submit(self._read, slab, quantizer)
                made = worker.submit(self._make, slab, quantizer, read)
                under_way.append(writer.submit(self._write, slab, made))
                if len(under_way) == in_flight:
                    under_way.popleft().result()
            for written in under_way:
                written.result()

    def _read(self, slab: Slab, quantizer: RowQuantizer) -> Read:
        """The rows as the next step wants them, and their importance."""
        with self.clock("read"):
            entry = slab.entry
            if not entry.converted:
                raw = self._source.read(entry.source, slab.first_row, slab.n_rows)
                _require_sound(slab, raw)
                return Read(raw, entry.source_type)
            raw, type = self._source.fetch(entry.source, slab.first_row, slab.n_rows)
            return Read(quantizer.load(raw, type), type, self._importance_of(slab))

    def _importance_of(self, slab: Slab) -> np.ndarray | None:
        name = slab.entry.importance_name
        if name is None or self._importance is None:
            return None
        if self._columns[0] != name:
            entry = slab.entry
            self._columns = (name, self._importance.columns(name, entry.n_cols, entry.n_matrices))
        columns = self._columns[1]
        return None if columns is None else columns[slab.matrix]

    def _make(self, slab: Slab, quantizer: RowQuantizer, read: Future[Read]) -> np.ndarray:
        found = read.result()
        entry = slab.entry
        if not entry.converted:
            return found.rows
        with self.clock("quantize"):
            try:
                return quantizer.quantize(found.rows, found.type, entry.type, found.importance)
            except DeviceFault:  # of the device, not of this tensor
                raise
            except QuantizeError as error:
                raise self._explained(error, slab, found) from error

    def _explained(self, error: QuantizeError, slab: Slab, read: Read) -> JobError:
        """The error of an engine, which knows the rows of a slab, in the words of the model: tensor and row."""
        entry = slab.entry
        if isinstance(error, NotFiniteError):
            return _damaged(error, slab)
        if isinstance(error, TooLargeError):
            weights = to_float32(read.rows[error.row : error.row + 1], read.type)[0]
            return unfit_row(
                entry, slab.first_row + error.row, weights, read.importance, self._way_out(entry)
            )
        return JobError(f"{entry.name}: {error}")

    def _write(self, slab: Slab, made: Future[np.ndarray]) -> None:
        data = made.result()
        with self.clock("write"):
            self._sink.write(slab.entry.name, data)
            self._source.release(slab.entry.source, slab.first_row, slab.n_rows)
        entry = slab.entry
        n_bytes = entry.source_bytes * slab.n_rows * entry.n_cols // entry.n_weights
        self._watcher.progressed(n_bytes, entry.name)


def _damaged(error: NotFiniteError, slab: Slab) -> JobError:
    return JobError(
        f"{slab.entry.name}: {error.value} in row {slab.first_row + error.row}, column {error.column}; "
        "the model is damaged: convert or fetch it again"
    )


def _require_sound(slab: Slab, raw: np.ndarray) -> None:
    """Copied rows are checked as llama-quantize checks them: finite numbers, finite scales."""
    type = TYPES.get(slab.entry.type)
    if type is None:  # integers
        return
    try:
        if type.family == "plain":
            require_finite(to_float32(raw, type.name))
        else:
            require_finite_scales(raw, type)
    except NotFiniteError as error:
        raise _damaged(error, slab) from error
    except TooLargeError:
        raise JobError(
            f"{slab.entry.name}: rows {slab.first_row} to {slab.first_row + slab.n_rows - 1} hold a scale that is NaN "
            "or infinite; the model is damaged: convert or fetch it again"
        ) from None
