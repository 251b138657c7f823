"""What all commands share: errors in one line, progress bars on stderr, plain tables on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from quantmill.errors import QuantmillError


class CommandError(QuantmillError):
    """A command line that parses but cannot be carried out."""


@contextmanager
def fail_with_one_line() -> Iterator[None]:
    """Turn errors meant for users into one line on stderr and exit code 1; an interrupt gives 130."""
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted; no output was written", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell. Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except MemoryError:
        _fail("not enough memory; a smaller --max-buffer-size helps", 1)
    except OSError as error:
        what = error.strerror or str(error)
        _fail(f"{error.filename}: {what}" if error.filename is not None else what, 1)
    except QuantmillError as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> None:
    print_line(f"error: {message}")
    raise SystemExit(code) from None


def own_version() -> str:
    """The installed version; a source tree that is only on the path has none."""
    from importlib.metadata import PackageNotFoundError, version  # loads all of `email`

    try:
        return version("quantmill")
    except PackageNotFoundError:
        return "source tree"


def print_line(text: str) -> None:
    """One line on stderr; what cannot be shown (names of files may hold any byte) is escaped."""
    line = " ".join(text.split("\n")) + "\n"
    sys.stderr.write(line.encode(errors="surrogateescape").decode(errors="backslashreplace"))
    sys.stderr.flush()


def print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print_line(f"warning: {warning}")


@contextmanager
def _bar(description: str, total: int, columns: Sequence[object]) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, nothing elsewhere: logs want no thousand lines, and rich costs its import."""
    if not sys.stderr.isatty():
        yield lambda amount, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    shown = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    ]
    with Progress(*shown, console=Console(stderr=True), transient=True) as progress:  # type: ignore[arg-type]
        task = progress.add_task(description, total=total, what="")
        yield lambda amount, what: progress.update(task, advance=amount, what=what)


@contextmanager
def bytes_bar(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Gives advance(bytes, what is being worked on); shows bytes, rate and time left."""
    columns: list[object] = []
    if sys.stderr.isatty():
        from rich.progress import DownloadColumn, TransferSpeedColumn

        columns = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    with _bar(description, total, columns) as advance:
        yield advance


@contextmanager
def tokens_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Gives advance(count, what="") for tokens, tasks or chunks; shows how many and the time left."""
    columns: list[object] = []
    if sys.stderr.isatty():
        from rich.progress import MofNCompleteColumn

        columns = [MofNCompleteColumn()]
    with _bar(description, total, columns) as advance:
        yield lambda amount, what="": advance(amount, what)


def size_text(n_bytes: float) -> str:
    """`98.86 MiB`: binary units, as llama.cpp prints them."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"


def table_text(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of equal length as aligned columns, two spaces apart; `right` lists the columns of numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
