"""Complete files that are given their names together: all of them, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from quantmill.gguf_io.filesystem import KEPT_SUFFIX, beside, sync_directory
from quantmill.gguf_io.partial import PartialFile


class Complete(Protocol):
    """A complete file that waits for its name, as a PartialFile does."""

    final: Path

    @property
    def has_final_name(self) -> bool: ...

    def rename(self) -> None: ...

    def forget(self) -> None: ...

    def discard(self) -> None: ...


class FinishedFile:
    """One that was made under another name in the same directory; a context manager that removes it unless renamed."""

    def __init__(self, path: Path, final: Path) -> None:
        self.final = final
        self._path: Path | None = path

    @property
    def has_final_name(self) -> bool:
        return self._path == self.final

    def rename(self) -> None:
        assert self._path is not None
        os.replace(self._path, self.final)
        self._path = self.final

    def forget(self) -> None:
        self._path = None

    def discard(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def __enter__(self) -> FinishedFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.has_final_name:
            self.discard()


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Small files, each complete, all of them or none. Names as resolved() gives them. Raises GGUFError."""
    with ExitStack() as opened:
        files = []
        for final, content in contents.items():
            files.append(opened.enter_context(PartialFile(final, len(content))))
            files[-1].write_at(0, memoryview(content))
        finish_all(files)


def finish_all(files: Sequence[PartialFile]) -> None:
    """All of them on the disk, then under their names, and the names on the disk. Raises GGUFError."""
    for file in files:
        file.sync()
    rename_all(files)
    for directory in dict.fromkeys(file.final.parent for file in files):
        sync_directory(directory)


def rename_all(files: Sequence[Complete]) -> None:
    """One after the other. Where one fails, or an interrupt comes, those before it are removed again, and what had
    their names has them again, as far as the file system has hard links.

    A process that is killed in between leaves some of them, each complete.
    """
    done: list[tuple[Complete, Path | None, bool]] = []
    try:
        for file in files:
            was_there = file.final.exists()
            done.append((file, _kept(file) if was_there and len(files) > 1 else None, was_there))
            file.rename()
    except BaseException:
        for file, old, was_there in reversed(done):
            _take_back(file, old, was_there)
        raise
    finally:
        for _, old, _ in done:
            if old is not None:
                old.unlink(missing_ok=True)


def _kept(file: Complete) -> Path | None:
    """A second name for what will be replaced; None where there are no second names."""
    place = beside(file.final, KEPT_SUFFIX)
    try:
        place.unlink(missing_ok=True)  # of a run that was killed
        os.link(file.final, place)
    except OSError:
        return None
    return place


def _take_back(file: Complete, old: Path | None, was_there: bool) -> None:
    if not file.has_final_name:
        return
    with suppress(OSError):  # the first error is the one to tell
        if old is not None:
            os.replace(old, file.final)
            file.forget()
        elif not was_there:
            file.discard()
