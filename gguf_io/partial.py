"""A file that is not there until it is complete: written beside its final name, then renamed over it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from quantmill.gguf_io.errors import GGUFError

try:
    import fcntl as _fcntl
except ImportError:  # Windows has no flock; there two runs to one name are not told apart
    fcntl: ModuleType | None = None
else:
    fcntl = _fcntl

SUFFIX = ".quantmill-partial"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # some network file systems
_WRITEBACK_BYTES = 8 << 20  # enough for a disk to work at full speed, little enough to be left for the end


def resolved(final: Path) -> Path:
    """The file that writing to `final` replaces: links are followed, and only a regular file may be there.

    Raises GGUFError otherwise, or when its directory does not exist.
    """
    target = Path(os.path.realpath(final))
    if target.exists() and not target.is_file():
        raise GGUFError(f"{final}: is there already and is not a regular file; choose another output")
    if not target.parent.is_dir():
        raise GGUFError(f"{final}: there is no directory {target.parent}; create it or choose another output")
    return target


def partial_path(final: Path) -> Path:
    """The name under which `final` is written."""
    return final.with_name(final.name + SUFFIX)


class PartialFile:
    """`<final name>.quantmill-partial`, locked while it is written.

    The name is fixed, so what a killed run left behind is reused and never piles up; the lock tells such a
    leftover from a file that another run is writing now. final: as resolved() gives it.
    """

    def __init__(self, final: Path, file_bytes: int) -> None:
        self.final = final
        self._file_bytes = file_bytes
        self._path: Path | None = partial_path(final)  # where the file is now
        self._held = (file_bytes, 0)  # first and last byte that the disk has not been asked to write
        self._fd = self._claim(self._path)
        try:
            os.ftruncate(self._fd, 0)
            # The whole length at once: what is never written, the padding between tensors, reads as zeros.
            os.ftruncate(self._fd, file_bytes)
        except OSError as error:
            self.discard()
            raise self._failed(error, 0) from error

    def _claim(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        while True:
            fd = os.open(path, flags, 0o666)
            self._lock(fd)
            # Between open and lock the other run may have finished: then this is its result, not a leftover.
            if _is_at(fd, path):
                return fd
            os.close(fd)

    def _lock(self, fd: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise
            raise GGUFError(f"{self.final}: another run is writing it now; wait or stop it") from None

    def write_at(self, position: int, data: memoryview) -> None:
        """Write all bytes. Raises GGUFError when the disk is full or fails; not for two threads at once."""
        try:
            os.lseek(self._fd, position, os.SEEK_SET)
            while data:
                written = os.write(self._fd, data)
                self._begin_writeback(position, position + written)
                position, data = position + written, data[written:]
        except OSError as error:
            raise self._failed(error, position) from error

    def _begin_writeback(self, start: int, end: int) -> None:
        """Let the disk work while the next parts are made, so that sync() has little to wait for.

        Linux begins to write what is dirty when it is given this advice, and what is dirty it does not drop. A system
        that takes it otherwise, or has no such call, loses nothing: sync() alone makes the file safe.
        """
        first, last = min(self._held[0], start), max(self._held[1], end)
        self._held = (first, last)
        if last - first >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # it is advice only
                os.posix_fadvise(self._fd, first, last - first, os.POSIX_FADV_DONTNEED)
            self._held = (self._file_bytes, 0)

    def sync(self) -> None:
        """Wait until all of it is on the disk. Raises GGUFError when that fails."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error, self._file_bytes) from error

    def rename(self) -> None:
        """Give the file its final name, replacing what had it."""
        if os.name == "nt":  # an open file cannot be renamed there
            self._close()
        os.replace(partial_path(self.final), self.final)
        self._path = self.final
        self._close()

    @property
    def has_final_name(self) -> bool:
        return self._path == self.final

    def discard(self) -> None:
        """Remove the file, also when it already has its final name. Does nothing the second time."""
        if os.name == "nt":  # an open file cannot be removed there
            self._close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        self._close()  # last, for it gives up the lock

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _failed(self, error: OSError, position: int) -> GGUFError:
        done = f"byte {position} of {self._file_bytes}"
        if error.errno in _NO_SPACE:
            return GGUFError(
                f"{self.final}: the disk is full at {done}; free space or choose another directory"
            )
        return GGUFError(f"{self.final}: cannot be written at {done}: {error.strerror}")


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    if os.name == "nt":  # a directory cannot be opened there
        return
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
