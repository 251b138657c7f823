"""Stored rows in one type to stored rows in another: the same two steps on the CPU and on a device."""

from __future__ import annotations

from collections.abc import Callable

from quantmill.qkernels.engines import Engine, RowQuantizer
from quantmill.qkernels.guard import Guard
from quantmill.qkernels.types import Search


def row_quantizers(
    engine: Engine,
    threads: int | None = None,
    search: Search = "default",
    tell: Callable[[str], None] | None = None,
    strict: bool = False,
) -> list[RowQuantizer]:
    """The quantizers that share the work of an engine; `threads` are those of the cpu engine, None for all cores.

    Two for a GPU: while one waits for its rows to come back, the other's are on their way or being searched.
    `tell` hears of a device's faults, by default Python's warnings; with `strict` they are errors (DeviceFault).
    """
    guard = Guard(strict=strict) if tell is None else Guard(tell, strict)
    return engine.row.load().quantizers(engine, threads, search, guard)
