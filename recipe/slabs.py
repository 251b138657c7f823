"""How the rows of a model travel: in slabs that fit the memory, no slab across two experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

    @property
    def memory(self) -> int:
        """Bytes of its rows in all their forms."""
        return self.n_rows * _row_bytes(self.entries)


def slabs(outputs: Sequence[Sequence[PlanEntry]], budget: int) -> Iterator[Slab]:
    """Slabs of at most `budget` bytes (or one row): raw, as float32 and quantized. In order, experts apart.

    outputs: the entries of each, of the same tensors in the same order.
    """
    for entries in zip(*outputs, strict=True):
        first = entries[0]
        assert all(entry.source == first.source for entry in entries)
        n_rows = first.n_weights // first.n_cols
        step = max(1, budget // _row_bytes(entries))
        weighed = any(entry.importance_name is not None for entry in entries)
        n_parts = first.n_matrices if weighed else 1
        part_rows = n_rows // n_parts
        for part in range(n_parts):
            for start in range(0, part_rows, step):
                yield Slab(entries, part * part_rows + start, min(step, part_rows - start), part)


def _row_bytes(entries: Sequence[PlanEntry]) -> int:
    """Of a row as it is read, as float32 where something is made of it, and as each output has it."""
    first = entries[0]
    n_rows = first.n_weights // first.n_cols
    made = [entry.n_bytes // n_rows for entry in entries if entry.converted]
    return first.source_bytes // n_rows + sum(made) + (4 * first.n_cols if made else 0)


def handfuls(slabs: Iterable[Slab], source_bytes: int, memory: int) -> Iterator[tuple[Slab, ...]]:
    """Slabs that go from hand to hand together, in order: as many as have source_bytes, and no more than fit into
    `memory`. At least one each, so none of either means each alone."""
    some: list[Slab] = []
    taken = needed = 0
    for slab in slabs:
        if some and (taken >= source_bytes or needed + slab.memory > memory):
            yield tuple(some)
            some, taken, needed = [], 0, 0
        some.append(slab)
        taken, needed = taken + slab.source_bytes, needed + slab.memory
    if some:
        yield tuple(some)
