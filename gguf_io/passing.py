"""Large files that pass once, front to back: their pages are given back on the way, so that new ones are not asked for.

Where a file of many gigabytes fills the memory with pages that nobody looks at again, finding room for the next page
costs more than the disk does. None of this changes a byte; a system without these calls only misses the speed.
"""

from __future__ import annotations

import os
from contextlib import suppress

LARGE = 1 << 30  # below, the whole file may stay in memory: it is often opened again
_SAMPLES = 64  # places of a file that are looked at
_STARTED = 8 << 20  # enough for a disk to work at full speed, little enough to be left for the end
_BEHIND = 64 << 20  # of these the disk is waited for


def drop(fd: int, start: int, size: int) -> None:
    """Forget pages that equal the disk; what is not on the disk yet, it begins to write."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is advice only
            os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)


def passes_by(fd: int) -> bool:
    """Whether an open file is large and most of it is not in memory: who left it there wants it there again."""
    if os.fstat(fd).st_size < LARGE:
        return False
    share = share_in_memory(fd)
    return share is not None and share < 0.5


def share_in_memory(fd: int) -> float | None:
    """Of an open file, by some places of it; None where the system cannot say."""
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return None
    size = os.fstat(fd).st_size
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # or each look would read on
    try:
        # Anywhere, for a look may make the system read that place.
        places = [int.from_bytes(os.urandom(8), "little") % size for _ in range(_SAMPLES)]
        found = [_is_in_memory(fd, place) for place in places]
    except OSError:  # a file system that cannot say
        return None
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    return sum(found) / _SAMPLES


def _is_in_memory(fd: int, place: int) -> bool:
    try:
        return bool(os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT))
    except BlockingIOError:
        return False


class WriteBehind:
    """Lets the disk work while the next parts of an open file are made, never far behind them."""

    def __init__(self, fd: int, file_bytes: int) -> None:
        self._fd, self._file_bytes = fd, file_bytes
        self._started, self._behind = _Span(), _Span()

    def wrote(self, start: int, end: int) -> None:
        """Raises OSError when the disk fails."""
        if not hasattr(os, "posix_fadvise"):  # syncing alone makes the file safe
            return
        self._started.add(start, end)
        if self._started.size >= _STARTED:
            self._behind.add(self._started.start, self._started.end)
            self._started.drop(self._fd)
        if self._file_bytes >= LARGE and self._behind.size >= _BEHIND:
            os.fdatasync(self._fd)
            self._behind.drop(self._fd)


class _Span:
    """From the first to the last of some bytes."""

    def __init__(self) -> None:
        self.start, self.end, self.size = 0, 0, 0

    def add(self, start: int, end: int) -> None:
        self.start = min(self.start, start) if self.size else start
        self.end = max(self.end, end) if self.size else end
        self.size = self.end - self.start

    def drop(self, fd: int) -> None:
        drop(fd, self.start, self.size)
        self.size = 0
