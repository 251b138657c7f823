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
    """A context manager that removes its files: a run that ends otherwise than by being killed leaves nothing, unless
    it says so.

    outputs: links followed, not there yet; beside each lies `<output>.quantmill-rows`. run: a hash of all that decides
    the rows and where they lie. The first line of each file holds it, each other line of the first file slabs that
    were brought to the disk together. resume: all that was written into the outputs is still there. damaged: a file
    that is not what a run has written, and counts for nothing; None: there is none.
    """

    def __init__(self, outputs: Sequence[Path], run: str, resume: bool) -> None:
        self.paths = [companion(output, ROWS_SUFFIX) for output in outputs]
        self.found: frozenset[Where] = frozenset()
        self.damaged: Path | None = None
        if resume:
            noted = [self._noted(path) for path in self.paths]
            same = [found[1] for found in noted if found is not None and found[0] == run]
            if len(same) == len(noted):
                self.found = frozenset(same[0])
        for path in self.paths[1:]:
            path.write_text(json.dumps(run) + "\n", encoding="utf-8")
        self._file = open(self.paths[0], "w", encoding="utf-8")  # noqa: SIM115 - closed at the end
        self._write(run)
        self._write(sorted(self.found))

    def _noted(self, path: Path) -> tuple[str, list[Where]] | None:
        """The run and its rows; None where there is no file, or no sound one."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what has no end was being written
            if not lines:
                return None
            found = [(str(name), int(row)) for line in lines[1:] for name, row in json.loads(line)]
            return str(json.loads(lines[0])), found
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            self.damaged = path
            return None

    def add(self, slabs: Iterable[Slab]) -> None:
        """These are on the disk."""
        self._write([where(slab) for slab in slabs])

    def _write(self, value: object) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def leave(self) -> None:
        """They stay for the next run."""
        self.paths = []

    def __enter__(self) -> FinishedRows:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        for path in self.paths:
            path.unlink(missing_ok=True)
