"""A file that is not there until it is complete: written beside its final name, then renamed over it."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.filesystem import (
    NO_RENAME,
    NO_SPACE,
    UNKNOWN,
    beside,
    copy_content,
    short_hash,
    sync,
    sync_directory,
)
from quantmill.gguf_io.locks import is_at, lock
from quantmill.gguf_io.passing import WriteBehind

SUFFIX = ".quantmill-partial"
ROWS_SUFFIX = ".quantmill-rows"  # notes what is complete in a partial file


def resolved(final: Path) -> Path:
    """The file that writing to `final` replaces: links are followed, and only a regular file may be there.

    Raises GGUFError otherwise, or when its directory does not exist.
    """
    target = Path(os.path.realpath(final))
    if final.exists() and not final.is_file():  # not by the target: that of /dev/stdout may have no name
        raise GGUFError(f"{final}: is there already and is not a regular file; choose another output")
    if target.is_symlink():  # what realpath leaves of one that ends in itself
        raise GGUFError(f"{final}: is a link that leads to itself; remove it or choose another output")
    if not target.parent.is_dir():
        raise GGUFError(f"{final}: there is no directory {target.parent}; create it or choose another output")
    return target


def partial_path(final: Path) -> Path:
    """The name under which `final` is written."""
    return beside(final, SUFFIX)


def completed_elsewhere(final: Path) -> bool:
    """Whether `final` can be written but nothing can be put beside it; then it is made in the directory for
    temporary files and copied in place."""
    return final.exists() and not os.access(final.parent, os.W_OK | os.X_OK)


def companion(final: Path, suffix: str) -> Path:
    """A further file of the work on `final`: beside it, or among the temporary files where nothing can be put there."""
    if not completed_elsewhere(final):
        return beside(final, suffix)
    return beside(Path(tempfile.gettempdir()) / f"{final.name}-{short_hash(final)}", suffix)


class PartialFile:
    """`<final name>.quantmill-partial`, locked while it is written; a context manager that removes it unless renamed.

    The name is fixed, so what a killed run left behind is reused and never piles up; the lock tells such a
    leftover from a file that another run is writing now. A file that is replaced keeps its mode and, where that is
    permitted, its owner. final: as resolved() gives it.
    """

    def __init__(self, final: Path, file_bytes: int, keep: bool = False, patience: float = 0.0) -> None:
        """keep: what a killed run has left stays in it, where its length is the same (`was_kept`). patience: seconds in
        which whoever writes it now may end."""
        self.final = final
        self._patience = patience
        self._file_bytes = file_bytes
        self._fd = -1
        self._path: Path | None = None  # where the file is now
        self._elsewhere = completed_elsewhere(final)
        try:
            if self._elsewhere:
                self._fd, name = tempfile.mkstemp(SUFFIX, "quantmill-")
                self._path = Path(name)
            else:
                self._claim(partial_path(final))
            self.was_kept = keep and os.fstat(self._fd).st_size == file_bytes
            if not self.was_kept:
                companion(final, ROWS_SUFFIX).unlink(missing_ok=True)  # they are not in it any more
                os.ftruncate(self._fd, 0)
            self._take_mode()
            self._lengthen()
            self._behind = WriteBehind(self._fd, file_bytes)
        except OSError as error:
            started = self._path is not None
            self.discard()
            if not started:
                raise
            raise self._failed(error, 0) from error
        except BaseException:
            self.discard()
            raise

    def _claim(self, path: Path) -> None:
        """Open and lock `path`; from then on it is ours to remove."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        while self._path is None:
            was_there = path.exists()
            try:
                self._fd = os.open(path, flags, 0o666)
                self._lock()
                # Else the other run has finished: then this is its result, not a leftover.
                if is_at(self._fd, path):
                    self._path = path
                else:
                    self._close()
            except KeyboardInterrupt:  # it can come between any two steps
                if not was_there:
                    path.unlink(missing_ok=True)
                raise

    def _lock(self) -> None:
        if not lock(self._fd, self._patience):
            raise GGUFError(f"{self.final}: another run is writing it now; wait or stop it")

    def _take_mode(self) -> None:
        """Of the file that will be replaced, from the start: what others could not read they shall not read now."""
        if self._elsewhere or not self.final.exists() or not hasattr(os, "fchmod"):
            return
        old = self.final.stat()
        with suppress(OSError):
            os.fchown(self._fd, old.st_uid, old.st_gid)
        with suppress(OSError):  # FAT and some network file systems have no modes
            os.fchmod(self._fd, old.st_mode & 0o7777)

    def _lengthen(self) -> None:
        """The whole length at once: what is never written, the padding between tensors, reads as zeros."""
        try:
            os.ftruncate(self._fd, self._file_bytes)
        except OSError as error:
            if error.errno not in UNKNOWN or not self._file_bytes:
                raise
            os.lseek(self._fd, self._file_bytes - 1, os.SEEK_SET)
            os.write(self._fd, b"\0")

    def clear(self) -> None:
        """All of it reads as zeros. Raises GGUFError."""
        try:
            os.ftruncate(self._fd, 0)
            self._lengthen()
        except OSError as error:
            raise self._failed(error, 0) from error

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.has_final_name:
            self.discard()

    def __del__(self) -> None:
        # An interrupt can come between its making and the place that would discard it.
        if getattr(self, "_path", None) is not None and not self.has_final_name:
            with suppress(OSError):
                self.discard()

    def write_at(self, position: int, data: memoryview) -> None:
        """Write all bytes. Raises GGUFError when the disk is full or fails; not for two threads at once."""
        try:
            os.lseek(self._fd, position, os.SEEK_SET)
            while data:
                written = os.write(self._fd, data)
                self._behind.wrote(position, position + written)
                position, data = position + written, data[written:]
        except OSError as error:
            raise self._failed(error, position) from error

    def sync(self) -> None:
        """Wait until all of it is on the disk. Raises GGUFError when that fails."""
        try:
            sync(self._fd)
        except OSError as error:
            raise self._failed(error, self._file_bytes) from error

    def rename(self) -> None:
        """Give the file its final name, replacing what had it; where that cannot be done by name, by copying.

        Raises GGUFError; a copy that fails leaves the complete file where it is and says so.
        """
        assert self._path is not None
        if self._elsewhere:
            self._copy()
            return
        if os.name == "nt":  # an open file cannot be renamed there
            self._close()
        try:
            os.replace(self._path, self.final)
        except OSError as error:
            if error.errno not in NO_RENAME or self._fd < 0:
                raise self._failed(error, self._file_bytes) from error
            self._copy()
        else:
            self._path = self.final
            self._close()

    def _copy(self) -> None:
        assert self._path is not None
        was_there = self.final.exists()
        try:
            try:
                copy_content(self._fd, self.final, self._file_bytes)
            except KeyboardInterrupt:  # half a copy is no answer to it
                copy_content(self._fd, self.final, self._file_bytes)
                raise
        except OSError as error:
            made, self._path = self._path, None  # the work is not lost
            self._close()
            if not was_there:
                self.final.unlink(missing_ok=True)
            raise GGUFError(
                f"{self.final}: cannot be written ({error.strerror}); the complete file is {made}"
            ) from error
        finally:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
                self._path = self.final
                self._close()

    def finish(self) -> None:
        """All of it on the disk, then under its name, and the name on the disk."""
        self.sync()
        self.rename()
        sync_directory(self.final.parent)

    @property
    def path(self) -> Path:
        """Where the file is now."""
        assert self._path is not None
        return self._path

    @property
    def has_final_name(self) -> bool:
        return self._path == self.final

    def forget(self) -> None:
        """Another file has the name now, or another run will go on with it."""
        self._path = None
        self._close()

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
        if error.errno in NO_SPACE:
            return GGUFError(
                f"{self.final}: the disk is full at {done}; free space or choose another directory"
            )
        return GGUFError(f"{self.final}: cannot be written at {done}: {error.strerror}")


def write_whole(final: Path, content: bytes) -> None:
    """Write a small file under its name, complete or not at all. final: as resolved() gives it. Raises GGUFError."""
    with PartialFile(final, len(content)) as file:
        file.write_at(0, memoryview(content))
        file.finish()
