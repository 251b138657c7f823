"""A device's quantizer that does not have to be believed, and the CPU's, which does what the device does not.

Before a device works on a type it is asked for hard blocks (trust.py). Then samples of its work are compared
(samples.py). A device that fails, or does not answer, loses its work to the CPU engine, so that the file is complete
all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from quantmill.qkernels.api import quantize
from quantmill.qkernels.checks import checked_importance
from quantmill.qkernels.cpu_engine import blocks_of, quantize_stored
from quantmill.qkernels.device_faults import FAULTS, faults_of, objections, reason_of
from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.engines import Engine, RowQuantizer, serving
from quantmill.qkernels.guard import Guard, within
from quantmill.qkernels.samples import FIRST_BLOCKS, ROWS, Kind, Parts, Samples, Slab, spread
from quantmill.qkernels.torch_errors import is_out_of_memory
from quantmill.qkernels.trust import Answers, Verdict, ask, case_of, compared, is_weighted
from quantmill.qkernels.types import DeviceFault, QuantizeError, QuantType, Search, get_type, readable_type


@dataclass
class Shared:
    """What the quantizers of one device know together. `lost`: why the device does nothing any more."""

    engine: Engine
    search: Search
    guard: Guard
    faults: tuple[type[Exception], ...] = FAULTS
    lost: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    told: set[str] = field(default_factory=set)
    lock: Any = field(default_factory=threading.Lock)
    _kinds: dict[tuple[str, str, int], Kind] = field(default_factory=dict)
    _answers: Answers | None = None

    @property
    def answers(self) -> Answers:
        if self._answers is None:
            self._answers = Answers(self.engine)
        return self._answers

    def kind(self, case: str, source: QuantType, target: QuantType, n_cols: int) -> Kind:
        """What its samples are compared with; always the same object."""
        key = case, source.name, n_cols
        if key not in self._kinds:
            encoder = encoder_of(target.name, is_weighted(case), self.search)
            self._kinds.setdefault(key, Kind(case, source, target, n_cols, encoder.uses_row_sigma))
        return self._kinds[key]

    def fault(self, line: str) -> None:
        """A fault that the CPU makes good, told once. Raises DeviceFault where that is not wanted."""
        if self.guard.strict:
            raise DeviceFault(line)
        if line not in self.told:
            self.told.add(line)
            self.guard.tell(line)

    def lose(self, reason: str) -> None:
        with self.lock:
            told, self.lost = self.lost, self.lost or reason
        if not told:
            self.fault(f"{self.engine.device} is given up: {reason}; the CPU goes on")


class GuardedQuantizer:
    """A RowQuantizer: `make` gives the device's, made when it is first used."""

    def __init__(self, make: Callable[[], RowQuantizer], threads: int | None, shared: Shared) -> None:
        self._make, self._threads, self._shared = make, threads, shared
        self._device: RowQuantizer | None = None

    def load(self, raw: np.ndarray, source_type: str) -> np.ndarray:
        return np.array(raw)  # reads the file here, not in the worker

    def quantize(
        self, loaded: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        shared = self._shared
        source, target = readable_type(source_type), get_type(type)
        n_cols = loaded.shape[1] // source.bytes * source.block
        # what is wrong with the input is the same on any device
        checked = checked_importance(importance, n_cols, target, shared.search)
        case = case_of(type, checked is not None, shared.search)
        began = perf_counter()

        def work() -> np.ndarray:
            nonlocal began
            began = perf_counter()  # what the device was asked before does not count
            return self._by_device(loaded, source_type, type, importance)

        done = self.beside(case, type, n_cols, work)
        if done is None:
            return self._by_cpu(loaded, source_type, type, importance)
        if target.family == "plain" or not len(done):
            return done
        seconds = perf_counter() - began
        kind, slab = shared.kind(case, source, target, n_cols), Slab(loaded, done, checked)
        if shared.samples.is_first(case):
            rows = spread(len(loaded), max(ROWS, -(-FIRST_BLOCKS * target.block // n_cols)))
            expected = self._by_cpu(loaded[rows], source_type, type, importance)
            self._require_same(case, target, loaded[rows], done[rows], expected)
            shared.samples.begin(kind, slab, self._compare)
        else:
            shared.samples.take(kind, slab, seconds, self._compare)
        return done

    def finish(self) -> None:
        self._shared.samples.finish(self._compare)

    def _compare(self, parts: Parts) -> None:
        kind, stored, search = parts.kind, parts.stored, self._shared.search
        expected = blocks_of(stored, kind.source, kind.target, parts.importance, parts.rows, search)
        self._require_same(kind.case, kind.target, stored, parts.made, expected)

    def beside(self, case: str, type: str, n_cols: int, work: Callable[[], Any]) -> Any | None:
        """What `work` makes on the device, of rows of so many columns; None where the CPU has to do it.

        Raises QuantizeError for input that no device could quantize, DeviceFault where faults are errors.
        """
        shared = self._shared
        if shared.lost or not self._trusted(case, type, is_weighted(case)):
            return None
        try:
            return within(shared.guard.seconds, work)
        except DeviceFault as error:
            shared.lose(str(error))
        except QuantizeError:
            raise
        except shared.faults as error:
            if is_out_of_memory(error):
                shared.fault(f"{shared.engine.device} has no memory for a row of {n_cols}; the CPU does it")
            else:
                shared.lose(reason_of(error))
        return None

    def _by_device(
        self, raw: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        if self._device is None:
            self._device = self._make()
        return self._device.quantize(raw, source_type, type, importance)

    def _by_cpu(
        self, raw: np.ndarray, source_type: str, type: str, importance: np.ndarray | None
    ) -> np.ndarray:
        return quantize_stored(raw, source_type, type, importance, self._threads, self._shared.search)

    def _trusted(self, case: str, type: str, weighted: bool) -> bool:
        """Whether the device may work on a type; asked once, by whichever quantizer comes first."""
        shared = self._shared
        if get_type(type).family == "plain":
            return True
        with shared.lock:
            known = shared.refused.get(case)
            if known is None:
                known = shared.refused[case] = self._objection(case, type, weighted)
                if known:
                    shared.fault(known)
        return not known

    def _objection(self, case: str, type: str, weighted: bool) -> str:
        shared = self._shared
        try:
            verdict = shared.answers.get(case)
            if verdict is None:
                verdict = within(
                    shared.guard.first_seconds,
                    lambda: ask(shared.answers, case, type, weighted, self._by_device, self._by_cpu),
                )
        except objections(shared.faults) as error:
            return f"{type} does not run on {shared.engine.device} ({reason_of(error)}); the CPU does it"
        if not verdict.different:
            return ""
        return f"{_differs(verdict, type, shared.engine, 'blocks compared')}; the CPU does this type"

    def _require_same(
        self, case: str, target: QuantType, raw: np.ndarray, found: np.ndarray, expected: np.ndarray
    ) -> None:
        """Raises DeviceFault where a device's blocks of some rows are not the CPU's."""
        shared = self._shared
        verdict = compared(shared.answers, case, target, raw, found, expected)
        if verdict.different:
            shared.answers.put(case, verdict)  # so that the next run does not begin with it
            raise DeviceFault(_differs(verdict, target.name, shared.engine, "blocks of the model"))


def _differs(verdict: Verdict, type: str, engine: Engine, what: str) -> str:
    shown = f", see {verdict.report}" if verdict.report else ""
    return (
        f"{type} on {engine.device}: {verdict.different} of {verdict.blocks} {what} are not the CPU's{shown}"
    )


def quantize_there(rows: Any, type: str, importance: Any | None = None, search: Search = "default") -> Any:
    """rows f32 [n_rows, n_cols], importance [n_cols] or None, tensors of one device → u8 [n_rows, row_bytes] there.

    Some rows of what another device than the CPU makes are compared with the CPU engine's, as a GuardedQuantizer does.
    Raises QuantizeError as `quantize` does, DeviceFault for a device that fails or differs.
    """
    row = serving(rows.device.type)
    if row.name == serving("cpu").name:
        return quantize(rows, type, importance, row.name, 1, search)
    engine = Engine(row.name, str(rows.device), "rows that are there")
    try:
        blocks = quantize(rows, type, importance, row.name, 1, search)
    except QuantizeError:
        raise
    except faults_of(engine) as error:
        raise DeviceFault(f"{type} does not run on {engine.device} ({reason_of(error)})") from error
    check_rows(rows, blocks, type, importance, search)
    return blocks


def check_rows(rows: Any, blocks: Any, type: str, importance: Any | None, search: Search) -> None:
    """Some rows of blocks that a device has made of its tensors, the first and the last among them, again on the CPU.

    Raises DeviceFault.
    """
    chosen = spread(len(rows), ROWS).tolist()
    weights = None if importance is None else importance.cpu().numpy()
    expected = quantize(rows[chosen].cpu().numpy(), type, weights, "cpu", 1, search)
    made = blocks[chosen].cpu().numpy()
    differ = (made != expected).reshape(-1, get_type(type).bytes).any(axis=1)
    if differ.any():
        raise DeviceFault(
            f"{type} on {rows.device}: {differ.sum()} of {len(differ)} blocks of the model are not the CPU's"
        )
