"""--profile: how fast a model ran, and what it spent its time on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from quantmill.commands.console import print_line, table_text
from quantmill.commands.watching import Shown

if TYPE_CHECKING:
    from quantmill.jobs.watcher import Unit

ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Say on stderr how many tokens a second ran, and which operations took the time; one thread is watched, "
        "so one runs.",
    ),
]
_N_SHOWN = 6


class _Counting(Shown):
    """Counts the tokens of all stages, and their seconds. chunk: tokens of a chunk, where a stage counts chunks."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self._tokens_each = {"tokens": 1, "chunks": chunk}
        self._each = 0
        self._last = 0.0
        self.tokens = 0
        self.seconds = 0.0

    def began(self, what: str, total: int, unit: Unit) -> None:
        super().began(what, total, unit)
        self._each, self._last = self._tokens_each.get(unit, 0), time.perf_counter()

    def progressed(self, amount: int, what: str = "") -> None:
        super().progressed(amount, what)
        now = time.perf_counter()
        if self._each:
            self.tokens += amount * self._each
            self.seconds += now - self._last
        self._last = now


@contextmanager
def shown(profile: bool, chunk: int) -> Iterator[Shown]:
    """A watcher for a job that runs models; with `profile`, afterwards a table of where the time went."""
    if not profile:
        with Shown() as watcher:
            yield watcher
        return
    from quantmill.models.profile import Profile

    counting = _Counting(chunk)
    with counting, Profile() as measured:
        yield counting
    if counting.seconds:
        rate, share = counting.tokens / counting.seconds, measured.matmuls / counting.seconds
        print_line(
            f"{rate:.0f} tokens/s: {counting.tokens} in {counting.seconds:.2f} s, "
            f"of which matrix multiplications took {100 * share:.1f} %"
        )
    if not measured.seconds:  # all was known from an earlier run
        return
    dearest = sorted(measured.seconds.items(), key=lambda pair: -pair[1])[:_N_SHOWN]
    rows = [(name, f"{seconds:.2f} s") for name, seconds in dearest]
    for line in table_text(rows, right=(1,)).splitlines():
        print_line(line)
