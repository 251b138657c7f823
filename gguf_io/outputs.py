"""The output rule, for every command and every option that writes a file.

    output = check_output(path, MODEL, inputs=[...], force=force, n_bytes=...)   # before the work
    for line in output.warnings: say(line)
    write_whole(output.final, content)     # or PartialFile(output.final, n_bytes), GGUFSink

An output is never an input, forced or not. A file that is there is replaced only when it is of the kind that is
written, judged by its content, or with `force`; that it is replaced is said. Writability and space are looked at
before the work. The file appears complete or not at all: gguf_io.partial.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.kinds import Kind, content_of
from quantmill.gguf_io.partial import completed_elsewhere, partial_path, resolved

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True)
class Output:
    """A place that may be written. path: as it was given; final: the file itself, links followed; replaces: there is
    a file now; warnings: what the user shall read before the work, --quiet or not."""

    path: Path
    final: Path
    kind: Kind
    replaces: bool
    warnings: tuple[str, ...] = ()


def check_output(
    path: str | os.PathLike[str],
    kind: Kind,
    inputs: Iterable[str | os.PathLike[str]] = (),
    *,
    force: bool = False,
    n_bytes: int | None = None,
    others: Iterable[Output] = (),
) -> Output:
    """The output at `path`, or GGUFError: an input, of another kind, not writable, no space. Touches nothing.

    inputs: all files and directories that the work reads; of a split model any of its files stands for all, and a
    directory for what is in it. force: replace a file of another kind, never an input. n_bytes: what will be
    written, where that is known. others: further outputs of the same run.
    """
    given = Path(path)
    final = resolved(given)
    _refuse_inputs(given, final, kind, inputs)
    for other in others:
        if final == other.final or (final.exists() and _same(final, other.final)):
            raise GGUFError(f"{given}: is to be written twice; choose another output for one of them")
    warnings: tuple[str, ...] = ()
    if final.exists():
        _require_kind(given, final, kind, force)
        warnings = (
            f"{given} is replaced: it is there already, {content_of(final)} of {final.stat().st_size} bytes",
        )
    _require_writable(given, final)
    if completed_elsewhere(final):
        warnings += (
            f"{given}: nothing can be put into {final.parent}; the file is completed in {tempfile.gettempdir()} "
            "and copied in place",
        )
    if n_bytes is not None:
        require_space([final], n_bytes)
    return Output(given, final, kind, final.exists(), warnings)


def check_directory(path: Path) -> None:
    """Whether outputs can be put into a directory that may have to be made first. Raises GGUFError."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise GGUFError(f"{path}: {there} is no directory; choose another output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise GGUFError(f"{path}: {there} cannot be written; choose another output")


def require_space(finals: Sequence[Path], n_bytes: int, kept_bytes: int = 0) -> None:
    """Whether n_bytes fit, for all files of one directory together. Raises GGUFError.

    What a killed run left counts as free: it is written over. kept_bytes: what lies beside them until they are done.
    """
    elsewhere = any(completed_elsewhere(final) for final in finals)
    directory = Path(tempfile.gettempdir()) if elsewhere else finals[0].parent
    try:
        disk = shutil.disk_usage(directory)
    except OSError:  # some file systems do not say
        return
    available = disk.free + sum(_bytes_on_disk(partial_path(final)) for final in finals)
    if disk.total and n_bytes + kept_bytes > available:
        more = f" and {kept_bytes} beside it until it is done" if kept_bytes else ""
        raise GGUFError(
            f"{finals[0]}: needs {n_bytes} bytes{more}, {available} are free on its disk; "
            "free space or choose another directory"
        )


def _refuse_inputs(given: Path, final: Path, kind: Kind, inputs: Iterable[str | os.PathLike[str]]) -> None:
    targets = [target for target in (final, partial_path(final)) if target.exists()]
    if not targets:
        return
    for source in map(Path, inputs):
        for file in _files_of(source):
            for target in targets:
                # Results that lie in a model's directory are no part of the model.
                if _same(target, file) and not (source.is_dir() and kind.holds(target)):
                    raise GGUFError(f"{given}: is an input; choose another output")


def _files_of(source: Path) -> Iterator[Path]:
    """All files that naming `source` may read: a directory's, a split model's, itself."""
    if source.is_dir():
        for directory, _, names in os.walk(source):
            yield from (Path(directory, name) for name in names)
        return
    yield source
    shard = _SHARD.search(source.name)
    if shard and shard.end() == len(source.name):
        prefix = source.name[: shard.start()]
        for name in os.listdir(source.parent):
            if name.startswith(prefix) and _SHARD.fullmatch(name, len(prefix)):
                yield source.with_name(name)


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one is not there, or cannot be seen; then nothing is read from it either
        return False


def _require_kind(given: Path, final: Path, kind: Kind, force: bool) -> None:
    if not force and final.stat().st_size and not kind.holds(final):
        raise GGUFError(
            f"{given}: is there already and is not {kind.name} but {content_of(final)}; "
            "choose another output, or replace it with --force"
        )


def _require_writable(given: Path, final: Path) -> None:
    directory = final.parent
    if final.exists():
        # root may write anything: it is the mode that says what its owner wants.
        if not final.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
            raise GGUFError(
                f"{given}: is write-protected; choose another output, or permit it with chmod u+w"
            )
        try:
            os.close(os.open(final, os.O_WRONLY))
        except OSError as error:
            raise GGUFError(f"{given}: cannot be written ({error.strerror}); choose another output") from None
    elif not os.access(directory, os.W_OK | os.X_OK):
        raise GGUFError(f"{given}: {directory} cannot be written; choose another output")
    else:
        _require_name(given, final)


def _require_name(given: Path, final: Path) -> None:
    try:
        os.lstat(final)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise GGUFError(f"{given}: cannot be written ({error.strerror}); choose another output") from None


def _bytes_on_disk(path: Path) -> int:
    """What a leftover of a killed run occupies (it has its full length from the start, but holes)."""
    return getattr(path.stat(), "st_blocks", 0) * 512 if path.is_file() else 0
