"""How the rows of a model travel: in slabs that fit the memory, no slab across two experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantmill.recipe.plan import PlanEntry


@dataclass(frozen=True)
class Slab:
    """Rows of one tensor that travel together. entries: what each output makes of them; `matrix` is the expert they
    belong to (one vector of importance)."""

    entries: tuple[PlanEntry, ...]
    first_row: int
    n_rows: int
    matrix: int = 0

    @property
    def source(self) -> str:
        """The tensor's name in the model that is read."""
        return self.entries[0].source

    @property
    def source_bytes(self) -> int:
        entry = self.entries[0]
        return entry.source_bytes * self.n_rows * entry.n_cols // entry.n_weights


def slabs(outputs: Sequence[Sequence[PlanEntry]], budget: int) -> Iterator[Slab]:
    """Slabs of at most `budget` bytes (or one row): raw, as float32 and quantized. In order, experts apart.

    outputs: the entries of each, of the same tensors in the same order.
    """
    for entries in zip(*outputs, strict=True):
        first = entries[0]
        assert all(entry.source == first.source for entry in entries)
        n_rows = first.n_weights // first.n_cols
        made = [entry.n_bytes // n_rows for entry in entries if entry.converted]
        row_bytes = first.source_bytes // n_rows + sum(made) + (4 * first.n_cols if made else 0)
        step = max(1, budget // row_bytes)
        weighed = any(entry.importance_name is not None for entry in entries)
        n_parts = first.n_matrices if weighed else 1
        part_rows = n_rows // n_parts
        for part in range(n_parts):
            for start in range(0, part_rows, step):
                yield Slab(entries, part * part_rows + start, min(step, part_rows - start), part)
