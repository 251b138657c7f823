"""Where derived files are kept between runs, and how they are written."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def cache_dir(kind: str) -> Path:
    """The folder for one kind of derived files ("codebooks", "cpu"), not created here.

    The system's own convention: `$XDG_CACHE_HOME` or `~/.cache`, `~/Library/Caches`, `%LOCALAPPDATA%`.
    """
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "quantmill" / kind


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under `path`; a reader, or another process doing the same, sees all of it or nothing.

    Raises OSError when the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    temporary = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
