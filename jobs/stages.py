"""The stages of a squeeze: done once, found afterwards, counted, told to the watcher and noted for --status."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quantmill.gguf_io.partial import write_whole
from quantmill.jobs.memory import Memory
from quantmill.jobs.squeeze_watch import SqueezeWatcher, StageRow, State
from quantmill.jobs.watcher import Unit

Work = Callable[[str], Mapping[str, Any]]  # the key of the stage → facts that are kept
RUN, PROGRESS = "run", "progress"  # names in the memory: the rows of the last run, how far its stage is
_EVERY = 2.0  # seconds between two notes of how far a stage is


class Stages:
    """Rows in the order of the work. found, done: how many there were already, and were not."""

    def __init__(
        self, memory: Memory, version: str, watcher: SqueezeWatcher, about: Mapping[str, Any]
    ) -> None:
        self.memory, self.watcher = memory, watcher
        self.found = self.done = 0
        self._version = version
        self._about = dict(about)
        self._rows: dict[str, StageRow] = {}
        self._seen: set[str] = set()

    def expect(self, labels: Sequence[str], before: str | None = None) -> None:
        """Stages that will come, in front of the one called `before`, or at the end."""
        new = {label: StageRow(label, "waiting") for label in labels if label not in self._rows}
        if before is None or before not in self._rows:
            self._rows.update(new)
        else:
            names = list(self._rows)
            at = names.index(before)
            rows = self._rows
            self._rows = {name: rows[name] for name in names[:at]} | new
            self._rows |= {name: rows[name] for name in names[at:]}

    def forget(self, labels: Sequence[str]) -> None:
        """Stages that will not come."""
        for label in labels:
            self._rows.pop(label, None)

    def key(self, stage: str, made_from: Mapping[str, Any]) -> str:
        return self.memory.key(stage, {"version": self._version, **made_from})

    def is_done(self, stage: str, made_from: Mapping[str, Any]) -> bool:
        return self.memory.facts(self.key(stage, made_from)) is not None

    def do(self, stage: str, label: str, made_from: Mapping[str, Any], work: Work) -> str:
        """Do a stage unless it is done; gives its key."""
        key = self.key(stage, made_from)
        facts = self.memory.facts(key)
        if facts is None:
            self._tell(label, "running")
            started = time.monotonic()
            facts = {**work(key), "seconds": round(time.monotonic() - started, 3)}
            self.memory.keep(key, facts)
            self.done += 1
            self._tell(label, "done", facts["seconds"])
        else:
            self.found += key not in self._seen
            if self._rows.get(label, StageRow(label, "waiting")).state == "waiting":
                self._tell(label, "found", facts.get("seconds"))
        self._seen.add(key)
        return key

    def do_together(
        self,
        stage: str,
        made_from: Mapping[str, Mapping[str, Any]],
        work: Callable[[Sequence[str]], Sequence[Mapping[str, Any]]],
    ) -> None:
        """Do stages of one piece of work, those of them that are not done; one that is left alone waits for its turn.

        made_from: by label. work: the labels that are left → the facts of each.
        """
        keys = {label: self.key(stage, parts) for label, parts in made_from.items()}
        left = [label for label, key in keys.items() if self.memory.facts(key) is None]
        if len(left) < 2:
            return
        for label in left:
            self._tell(label, "running")
        started = time.monotonic()
        found = work(left)
        seconds = round((time.monotonic() - started) / len(left), 3)
        for label, facts in zip(left, found, strict=True):
            self.memory.keep(keys[label], {**facts, "seconds": seconds})
            self.done += 1
            self._seen.add(keys[label])
            self._tell(label, "done", seconds)

    def _tell(self, label: str, state: State, seconds: float | None = None) -> None:
        self._rows[label] = StageRow(label, state, seconds)
        self.watcher.stages(tuple(self._rows.values()))
        self._note()

    def _note(self) -> None:
        rows = [[row.label, row.state, row.seconds] for row in self._rows.values()]
        self.memory.keep(RUN, {**self._about, "stages": rows})

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run is at its end."""
        self._about |= {"finished": True, **result}
        self._note()
        self.memory.file(PROGRESS, ".json").unlink(missing_ok=True)


class Noting:
    """A watcher that also leaves how far the stage is where --status looks."""

    def __init__(self, watcher: SqueezeWatcher, memory: Memory) -> None:
        self.note, self.warn = watcher.note, watcher.warn
        self.stages, self.measured, self.chosen = watcher.stages, watcher.measured, watcher.chosen
        self._watcher, self._memory = watcher, memory
        self._what, self._total, self._amount = "", 0, 0
        self._noted = time.monotonic()

    def began(self, what: str, total: int, unit: Unit) -> None:
        self._what, self._total, self._amount = what, total, 0
        self._watcher.began(what, total, unit)

    def progressed(self, amount: int, what: str = "") -> None:
        self._amount += amount
        self._watcher.progressed(amount, what)
        now = time.monotonic()
        if now - self._noted > _EVERY and self._memory.directory.is_dir():
            self._noted = now
            found = {"what": self._what, "done": self._amount, "total": self._total, "pid": os.getpid()}
            write_whole(self._memory.file(PROGRESS, ".json").resolve(), json.dumps(found).encode())
