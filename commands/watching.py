"""Shows how a job goes, on stderr: what it has to say, a bar for each stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import bars_are_shown, bytes_bar, print_warnings, remark, tokens_bar

if TYPE_CHECKING:
    from quantmill.jobs.watcher import Unit


class Shown:
    """A jobs.Watcher for a terminal: `with Shown() as watcher: run(job, watcher)`.

    Elsewhere than on a terminal there is no bar; then a long stage says after every tenth how it goes.
    """

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._advance: Callable[..., None] = lambda amount, what="": None
        self._what, self._unit = "", ""
        self._done = self._total = self._tenth = 0

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()

    def note(self, line: str) -> None:
        remark(line)

    def warn(self, line: str) -> None:
        print_warnings([line])

    def began(self, what: str, total: int, unit: Unit) -> None:
        self._bar.close()
        self._advance = self._bar.enter_context((bytes_bar if unit == "bytes" else tokens_bar)(what, total))
        self._what, self._unit = what, unit
        self._done, self._total, self._tenth = 0, total, 0

    def progressed(self, amount: int, what: str = "") -> None:
        self._advance(amount, what)
        self._done += amount
        tenth = 10 * self._done // max(self._total, 1)
        if tenth > self._tenth and self._unit == "chunks" and not bars_are_shown():
            said = f", {what}" if what else ""
            remark(f"{self._what}: {self._done} of {self._total} chunks{said}")
        self._tenth = tenth
