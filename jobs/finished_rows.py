"""Rows of a long run that are on the disk already, kept beside its unfinished output: what --resume goes on from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from quantmill.gguf_io.partial import ROWS_SUFFIX, companion
from quantmill.recipe.slabs import Slab

Where = tuple[str, int]  # tensor in the source, first row


def where(slab: Slab) -> Where:
    return slab.source, slab.first_row


class FinishedRows:
    """A context manager that is empty where it is left: a run that ends otherwise than by being killed leaves nothing.

    outputs: links followed, not there yet; beside each lies `<output>.quantmill-rows`. run: a hash of all that decides
    the rows and where they lie. The first line of each file holds it, each other line of the first file slabs that
    were brought to the disk together. resume: all that was written into the outputs is still there.
    """

    def __init__(self, outputs: Sequence[Path], run: str, resume: bool) -> None:
        self.paths = [companion(output, ROWS_SUFFIX) for output in outputs]
        noted = [
            path.read_text(encoding="utf-8").split("\n") if path.exists() else [""] for path in self.paths
        ]
        is_same = all(lines[0] == json.dumps(run) for lines in noted)
        self.found: frozenset[Where] = frozenset()
        if resume and is_same:  # what has no end was being written when the run was killed
            self.found = frozenset((name, row) for line in noted[0][1:-1] for name, row in json.loads(line))
        for path in self.paths[1:]:
            path.write_text(json.dumps(run) + "\n", encoding="utf-8")
        self._file = open(self.paths[0], "w", encoding="utf-8")  # noqa: SIM115 - closed at the end
        self._write(run)
        self._write(sorted(self.found))

    def add(self, slabs: Iterable[Slab]) -> None:
        """These are on the disk."""
        self._write([where(slab) for slab in slabs])

    def _write(self, value: object) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> FinishedRows:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        for path in self.paths:
            path.unlink(missing_ok=True)
