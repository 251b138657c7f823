"""Complete files that are given their names together: all of them, or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from quantmill.gguf_io.filesystem import beside
from quantmill.gguf_io.partial import PartialFile

KEPT_SUFFIX = ".quantmill-replaced"


def rename_all(files: Sequence[PartialFile]) -> None:
    """One after the other. Where one fails, or an interrupt comes, those before it are removed again, and what had
    their names has them again, as far as the file system has hard links.

    A process that is killed in between leaves some of them, each complete.
    """
    done: list[tuple[PartialFile, Path | None, bool]] = []
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


def _kept(file: PartialFile) -> Path | None:
    """A second name for what will be replaced; None where there are no second names."""
    place = beside(file.final, KEPT_SUFFIX)
    try:
        place.unlink(missing_ok=True)  # of a run that was killed
        os.link(file.final, place)
    except OSError:
        return None
    return place


def _take_back(file: PartialFile, old: Path | None, was_there: bool) -> None:
    if not file.has_final_name:
        return
    with suppress(OSError):  # the first error is the one to tell
        if old is not None:
            os.replace(old, file.final)
            file.forget()
        elif not was_there:
            file.discard()
