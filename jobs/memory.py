"""What a job of several stages has finished, in a directory: each result under a hash of all it was made from.

A second run finds what is there and does not do it again; where an input has changed, the hash is another one, and just
what depends on it is done anew. A result counts when it is complete: files and facts appear under their names whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantmill.gguf_io.locks import lock
from quantmill.gguf_io.partial import write_whole
from quantmill.jobs.errors import JobError

_ASIDE = "aside-"
VERSION = 1  # of what the facts mean; with another one everything is done anew


def aside(path: Path) -> Path:
    """A name beside `path` in a memory's directory, for a file that several may make at once: the first to be done
    renames it."""
    return path.with_name(f"{_ASIDE}{uuid.uuid4().hex}-{path.name}")


class Memory:
    """The directory is made when the first result is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def key(self, stage: str, made_from: Mapping[str, Any]) -> str:
        """`stage-0123456789abcdef`: made_from must say all that decides the result, as JSON can hold it."""
        described = json.dumps([VERSION, stage, made_from], sort_keys=True)
        return f"{stage}-{hashlib.sha256(described.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"

    def file(self, key: str, suffix: str) -> Path:
        """Where a stage puts a file; its directory is there afterwards."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / f"{key}{suffix}"

    def facts(self, key: str) -> dict[str, Any] | None:
        """What was kept under `key`; None when nothing was, or when it cannot be read."""
        try:
            found = json.loads((self.directory / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep(self, key: str, facts: Mapping[str, Any]) -> None:
        write_whole(self.file(key, ".json"), json.dumps(facts, indent=1).encode())

    @contextmanager
    def held(self) -> Iterator[None]:
        """For one run at a time, without what a killed one has laid aside. Raises JobError where another one has it."""
        with self._lock() as free:
            if not free:
                raise JobError(f"{self.directory.parent}: another run is at work there; wait or stop it")
            self.remove_aside()
            yield

    @property
    def is_held(self) -> bool:
        if not self.directory.is_dir():
            return False
        with self._lock() as free:
            return not free

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """The lock goes with the process, however that ends."""
        fd = os.open(self.file("lock", ""), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield lock(fd)
        finally:
            os.close(fd)

    def remove_aside(self) -> None:
        """What was begun under names that `aside` gave."""
        for path in self.directory.glob(f"{_ASIDE}*"):
            path.unlink(missing_ok=True)

    def keys(self) -> list[str]:
        """All stages that are finished, by name."""
        return sorted(path.stem for path in self.directory.glob("*-????????????????.json"))


def fingerprint(paths: Iterable[Path]) -> list[list[str | int]]:
    """Name, size and time of change of each file: what tells that a model of many gigabytes is still the same one."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
