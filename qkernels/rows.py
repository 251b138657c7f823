"""Stored rows in one type to stored rows in another: the same two steps on the CPU and on a device."""

from __future__ import annotations

from quantmill.qkernels.engines import Engine, RowQuantizer
from quantmill.qkernels.types import Search


def row_quantizers(
    engine: Engine, threads: int | None = None, search: Search = "default"
) -> list[RowQuantizer]:
    """The quantizers that share the work of an engine; `threads` are those of the cpu engine, None for all cores.

    Two for a GPU: while one waits for its rows to come back, the other's are on their way or being searched.
    """
    row = engine.row
    return [row.load().quantizer(engine, threads, search) for _ in range(row.serves[engine.kind].quantizers)]
