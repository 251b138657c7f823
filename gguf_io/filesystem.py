"""What file systems differ in: lengths of names, calls that they do not know, renaming."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from quantmill.gguf_io.errors import GGUFError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# What file systems answer to a call that they do not know (network, FUSE, FAT, WSL), beside the work failing.
UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EPERM}
# What they answer where a file can be written but not renamed onto its name: mount points, foreign files in /tmp.
NO_RENAME = {errno.EACCES, errno.EBUSY, errno.EXDEV, *UNKNOWN}
KEPT_SUFFIX = ".quantmill-replaced"  # of the second name of a file while it is replaced together with others
_NAME_BYTES = 255  # the longest name where the file system does not say
_COPY_BYTES = 4 << 20
_PATIENCE_S = 10.0  # for somebody to write into a pipe


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read at any place, opened without waiting for the other end of a pipe.

    Raises GGUFError for a pipe, a device or a directory, OSError for what cannot be opened.
    """
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise GGUFError(f"{path}: not a regular file")
    return file


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_regular(path: Path) -> bytes:
    """What is in a file. Raises as open_regular does."""
    with open_regular(path) as file:
        return file.read()


def read_whole(path: Path) -> bytes:
    """What is in a file, or comes out of a pipe (`<(cat a b)`).

    Raises GGUFError for a device, which may never end, and for a pipe that nobody writes into, OSError for what cannot
    be read.
    """
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return _read_pipe(path)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise GGUFError(f"{path}: neither a file nor a pipe")
    return path.read_bytes()


def _read_pipe(path: Path) -> bytes:
    """A writer that is there may take its time; one that does not come is not waited for."""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(pipe, "rb", buffering=0) as file:
        deadline = time.monotonic() + _PATIENCE_S
        while not (start := file.read(_COPY_BYTES)):
            if start is None:  # a writer has opened it and has written nothing yet
                select.select([file], [], [])
            elif time.monotonic() > deadline:
                raise GGUFError(
                    f"{path}: a pipe into which nothing was written for {_PATIENCE_S:.0f} s; start its writer first, "
                    "or give a file"
                )
            else:
                time.sleep(0.02)
        os.set_blocking(pipe, True)
        return start + file.readall()


def digest(paths: Sequence[Path]) -> str:
    """sha256 of files, one after the other. Raises GGUFError for what can be read once only or never ends."""
    import hashlib  # loads OpenSSL, which takes longer than all else here

    found = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(_COPY_BYTES):
                found.update(block)
    return found.hexdigest()


def bytes_in(folder: Path) -> int:
    """Of all files in a folder and below it; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def short_hash(name: str | Path) -> str:
    """Tells names apart, in twelve characters."""
    import hashlib  # as in digest

    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def beside(final: Path, suffix: str) -> Path:
    """`<final name><suffix>`; where that is longer than a name may be, the name is cut and told apart by its hash."""
    name = final.name + suffix
    limit = _longest_name(final.parent)
    if len(os.fsencode(name)) > limit:
        suffix = f"-{short_hash(final.name)}{suffix}"
        name = final.name
        while len(os.fsencode(name)) + len(suffix) > limit:
            name = name[:-1]
        name += suffix
    return final.with_name(name)


def _longest_name(directory: Path) -> int:
    try:
        return os.pathconf(directory, "PC_NAME_MAX")
    except (OSError, ValueError, AttributeError):  # Windows has no pathconf
        return _NAME_BYTES


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut, where the file system can: the file is complete either way."""
    with suppress(OSError):  # Windows opens no directory, SMB and FUSE sync none, one may not be readable
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync(fd: int) -> None:
    """Wait until an open file is on the disk, where the file system can say so. Raises OSError when that fails."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise


def copy_content(source: int, final: Path, n_bytes: int) -> None:
    """The first n_bytes of an open file into `final`, which keeps its mode and its links."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    target = os.open(final, flags, 0o666)
    try:
        os.lseek(source, 0, os.SEEK_SET)
        while block := os.read(source, _COPY_BYTES):
            while block:
                block = block[os.write(target, block) :]
        os.ftruncate(target, n_bytes)
        sync(target)
    finally:
        os.close(target)
