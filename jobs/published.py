"""Which finished files lie under which names in a folder, and whether they are still what was put there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from quantmill.gguf_io.partial import resolved
from quantmill.jobs.memory import Memory, fingerprint

_ENTRIES = "published"


class Published:
    """Files of stages (`key`.gguf among a memory's) that were given names in `directory`."""

    def __init__(self, memory: Memory, directory: Path) -> None:
        self._memory, self._directory = memory, directory

    @property
    def is_new(self) -> bool:
        """Nothing was ever given a name."""
        return self._memory.facts(_ENTRIES) is None

    def names(self) -> dict[str, str]:
        """Name → key of the file that it is, where size and time are those with which it was put there."""
        found = {}
        for name, (key, *state) in (self._memory.facts(_ENTRIES) or {}).items():
            path = self._directory / name
            if path.exists() and fingerprint([path])[0][1:] == state:
                found[name] = key
        return found

    def located(self, key: str) -> Path | None:
        """Where a file is now: among the stages, or under a name; whole, as its facts say."""
        facts = self._memory.facts(key) or {}
        own = self._memory.file(key, ".gguf")
        given = [self._directory / name for name, owner in self.names().items() if owner == key]
        return next((p for p in (own, *given) if p.exists() and p.stat().st_size == facts.get("bytes")), None)

    def give(self, source: Path, key: str, path: Path) -> None:
        """Give a file a name; one that has another name already gets a second link, or a copy.

        Between the two notes nothing is trusted, so that a kill in the middle costs a copy and no more.
        """
        self._note(path, None)
        if source.parent == self._memory.directory:
            os.replace(source, resolved(path))
        else:
            aside = self._memory.file(key, ".copy")
            aside.unlink(missing_ok=True)
            try:
                os.link(source, aside)
            except OSError:  # file systems without hard links
                shutil.copyfile(source, aside)
            os.replace(aside, resolved(path))
        self._note(path, key)

    def _note(self, path: Path, key: str | None) -> None:
        entries = dict(self._memory.facts(_ENTRIES) or {})
        entries.pop(path.name, None)
        if key is not None:
            entries[path.name] = [key, *fingerprint([path])[0][1:]]
        self._memory.keep(_ENTRIES, entries)
