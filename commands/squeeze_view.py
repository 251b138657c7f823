"""How a squeeze is watched: a live view on a terminal, lines elsewhere, or events for a program."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import remark, size_text
from quantmill.commands.watching import Shown
from quantmill.escape import escaped
from quantmill.plain_json import finite

if TYPE_CHECKING:
    from rich.console import Console

    from quantmill.jobs.squeeze_watch import CandidateRow, StageRow
    from quantmill.jobs.watcher import Unit

_SIGNS = {"waiting": "·", "running": "▸", "done": "✓", "found": "="}
_EVENT_EVERY = 1.0  # seconds between two events of progress
_LINE_EVERY = 30.0  # seconds between two lines of it


class Lines(Shown):
    """For logs: a line when a stage begins, when a candidate is measured, when one is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()
        self._spoke = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def began(self, what: str, total: int, unit: Unit) -> None:
        self._what, self._done, self._total = what, 0, total
        self._spoke = time.monotonic()

    def progressed(self, amount: int, what: str = "") -> None:
        self._done += amount
        if time.monotonic() - self._spoke > _LINE_EVERY and self._total:
            self._spoke = time.monotonic()
            remark(f"{self._what}: {100 * self._done / self._total:.0f} %{', ' if what else ''}{what}")

    def stages(self, rows: Sequence[StageRow]) -> None:
        for row in rows:
            said = f"{row.label} {row.state}"
            if row.state in ("running", "found") and said not in self._said:
                remark(f"{row.label}{'' if row.state == 'running' else ': found done'}")
            self._said.add(said)

    def measured(self, row: CandidateRow) -> None:
        remark(f"{row.label}: {size_text(row.n_bytes)}, KLD {row.kld:.6f} ± {row.kld_error:.6f}")

    def chosen(self, wish: str, label: str, reason: str) -> None:
        remark(f"{wish}: {label}, {reason}")


class Live:
    """Stages, a bar of the one that runs, and the table of candidates, which grows as they are measured."""

    def __init__(self, console: Console | None = None) -> None:
        """console: stderr's by default."""
        from rich.console import Console
        from rich.live import Live as RichLive
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}", markup=False),
        )
        self._task: Any = None
        self._rows: Sequence[StageRow] = ()
        self._candidates: list[CandidateRow] = []
        self._chosen: dict[str, str] = {}
        self._live = RichLive(console=console or Console(stderr=True), refresh_per_second=8, transient=True)

    def __enter__(self) -> Live:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def note(self, line: str) -> None:
        self._above(line)

    def warn(self, line: str) -> None:
        self._above(f"warning: {line}")

    def _above(self, line: str) -> None:
        self._live.console.print(escaped(line), markup=False, highlight=False)

    def began(self, what: str, total: int, unit: Unit) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escaped(what), total=total, what=unit)
        self._update()

    def progressed(self, amount: int, what: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=amount, what=escaped(what))

    def stages(self, rows: Sequence[StageRow]) -> None:
        self._rows = rows
        self._update()

    def measured(self, row: CandidateRow) -> None:
        self._candidates.append(row)
        self._update()

    def chosen(self, wish: str, label: str, reason: str) -> None:
        self._chosen[wish] = label
        self._update()

    def shown(self) -> str:
        """What stands there now, without colours."""
        with self._live.console.capture() as capture:
            self._live.console.print(self._parts())
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get())

    def _update(self) -> None:
        self._live.update(self._parts())

    def _parts(self) -> Any:
        from rich.console import Group

        parts = [self._stage_lines(), self._progress]
        return Group(*(parts + ([self._table()] if self._candidates else [])))

    def _stage_lines(self) -> Any:
        """What is done as a count, then the stage that runs and what comes next."""
        from rich.text import Text

        done = [row for row in self._rows if row.state in ("done", "found")]
        left = [row for row in self._rows if row.state in ("running", "waiting")]
        lines = [f"{len(done)} of {len(self._rows)} stages done"]
        for row in [*done[-3:], *left[:5]]:
            seconds = "" if row.seconds is None else f"  {row.seconds:.0f} s"
            lines.append(f" {_SIGNS[row.state]} {escaped(row.label)}{seconds}")
        more = len(left) - 5
        return Text("\n".join(lines + ([f"   and {more} more"] if more > 0 else [])))

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table("", "file", "candidate", "size", "KLD", "PPL")
        for row in self._candidates:
            best = self._chosen.get(row.wish) == row.label
            cells = ["✓" if best else "", row.wish, row.label, size_text(row.n_bytes)]
            cells += [f"{row.kld:.6f} ± {row.kld_error:.6f}", f"{row.ppl:.4f}"]
            table.add_row(*(Text(escaped(cell)) for cell in cells))
        return table


class Events:
    """One JSON object a line on stdout for all that happens; what is to be read by people stays on stderr."""

    def __init__(self) -> None:
        self._what, self._done, self._total, self._unit = "", 0, 0, ""
        self._told = 0.0

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"event": kind, **facts}, allow_nan=False) + "\n")
        sys.stdout.flush()

    def note(self, line: str) -> None:
        self.event("note", {"text": line})

    def warn(self, line: str) -> None:
        self.event("warning", {"text": line})

    def began(self, what: str, total: int, unit: Unit) -> None:
        self._what, self._done, self._total, self._unit = what, 0, total, unit
        self._told = time.monotonic()
        self.event("began", {"what": what, "total": total, "unit": unit})

    def progressed(self, amount: int, what: str = "") -> None:
        self._done += amount
        if time.monotonic() - self._told >= _EVENT_EVERY or self._done >= self._total:
            self._told = time.monotonic()
            self.event("progress", {"what": self._what, "done": self._done, "total": self._total})

    def stages(self, rows: Sequence[StageRow]) -> None:
        listed = [{"label": row.label, "state": row.state, "seconds": row.seconds} for row in rows]
        self.event("stages", {"stages": listed})

    def measured(self, row: CandidateRow) -> None:
        facts = {"file": row.wish, "label": row.label, "bytes": row.n_bytes}
        numbers = {"kld": row.kld, "kld_error": row.kld_error, "ppl": row.ppl}
        self.event("measured", finite({**facts, **numbers}))

    def chosen(self, wish: str, label: str, reason: str) -> None:
        self.event("chosen", {"file": wish, "label": label, "reason": reason})
