"""How the rows of a plan travel: in slabs that fit the memory, no slab across two experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantmill.recipe.plan import PlanEntry


@dataclass(frozen=True)
class Slab:
    """Rows of one tensor that travel together; `matrix` is the expert they belong to (one vector of importance)."""

    entry: PlanEntry
    first_row: int
    n_rows: int
    matrix: int = 0


def slabs(entries: Sequence[PlanEntry], budget: int) -> Iterator[Slab]:
    """Slabs of at most `budget` bytes (or one row): raw, as float32 and quantized. In order, experts apart."""
    for entry in entries:
        n_rows = entry.n_weights // entry.n_cols
        row_bytes = entry.source_bytes // n_rows
        if entry.converted:
            row_bytes += entry.n_bytes // n_rows + 4 * entry.n_cols
        step = max(1, budget // row_bytes)
        n_parts = entry.n_matrices if entry.importance_name is not None else 1
        part_rows = n_rows // n_parts
        for part in range(n_parts):
            for first in range(0, part_rows, step):
                yield Slab(entry, part * part_rows + first, min(step, part_rows - first), part)
