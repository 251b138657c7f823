"""What a process that was killed has left of an output: removed by another one, which must not touch anybody else's."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import KEPT_SUFFIX, beside
from quantmill.gguf_io.locks import is_at, lock
from quantmill.gguf_io.partial import completed_elsewhere, partial_path, resolved


@dataclass(frozen=True)
class Mark:
    """What tells a complete file from all others, under its temporary name and under its final one. path: where it lay;
    changed: ns."""

    path: Path
    inode: int
    n_bytes: int
    changed: int


class Found(Enum):
    """Of an output: nothing of it there, removed, or it may be there still."""

    NOTHING = "nothing"
    REMOVED = "removed"
    STAYS = "stays"


def mark_of(path: Path) -> Mark:
    """Raises OSError."""
    found = os.stat(path, follow_symlinks=False)
    return Mark(path, found.st_ino, found.st_size, found.st_mtime_ns)


def remove_leftover(path: Path, mark: Mark | None, patience: float) -> Found:
    """Remove an output's temporary file, unless somebody is writing it, and the output itself where it is the file that
    was marked; what that has replaced is there again where it was kept.

    patience: seconds in which whoever writes may end.
    """
    try:
        final = resolved(path)
    except GGUFError:  # nothing can have been written there
        return Found.NOTHING
    try:
        there = mark.path if mark is not None and completed_elsewhere(final) else partial_path(final)
        found = _remove_partial(there, patience)
        if mark is not None and _is(final, mark):
            _take_back(final)
            return Found.REMOVED
        _drop_kept(final)
    except OSError:
        return Found.STAYS
    return found


def _remove_partial(path: Path, patience: float) -> Found:
    try:
        fd = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return Found.NOTHING
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not lock(fd, patience):
            return Found.STAYS
        if not is_at(fd, path):  # whoever had it has ended, and removed it or given it its name
            return Found.NOTHING
        path.unlink()
        return Found.REMOVED
    finally:
        os.close(fd)


def _is(final: Path, mark: Mark) -> bool:
    try:
        found = mark_of(final)
    except FileNotFoundError:
        return False
    return (found.inode, found.n_bytes, found.changed) == (mark.inode, mark.n_bytes, mark.changed)


def _take_back(final: Path) -> None:
    kept = beside(final, KEPT_SUFFIX)
    if kept.exists():
        os.replace(kept, final)
    else:
        final.unlink()


def _drop_kept(final: Path) -> None:
    """The second name of what was to be replaced, and was not."""
    kept = beside(final, KEPT_SUFFIX)
    if kept.exists() and final.exists() and os.path.samefile(kept, final):
        kept.unlink()
