"""A file that one process at a time has, and who has it as long as its process lives."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType

from quantmill.gguf_io.filesystem import UNKNOWN

try:
    import fcntl as _fcntl
except ImportError:  # Windows has no flock; there two runs to one name are not told apart
    fcntl: ModuleType | None = None
else:
    fcntl = _fcntl

_EVERY = 0.1  # seconds between two attempts


def lock(fd: int, patience: float = 0.0) -> bool:
    """Have an open file for this process alone, until it closes it. Whether it does; so also where there are no locks.

    patience: seconds in which whoever has it may give it up. Raises OSError.
    """
    if fcntl is None:
        return True
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_EVERY)
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
            return True


def is_at(fd: int, path: Path) -> bool:
    """Whether an open file still has this name: between opening and locking it another run may have finished."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
