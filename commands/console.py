"""What all commands share: errors in one line, remarks and bars on stderr, results on stdout.

Everything that is printed goes through here, because names from files may hold characters that steer a terminal.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantmill.commands.signals import undisguised
from quantmill.errors import ProblemsError, QuantmillError, explained_imports, folded
from quantmill.escape import escaped

if TYPE_CHECKING:
    import logging


class CommandError(QuantmillError):
    """A command line that parses but cannot be carried out."""


class UsageError(CommandError):
    """Arguments that are wrong whatever the files hold: exit code 2."""


@contextmanager
def parsing() -> Iterator[None]:
    """Around the making of a request from arguments: whatever is wrong there is wrong usage."""
    try:
        yield
    except QuantmillError as error:
        raise UsageError(str(error)) from error


@contextmanager
def fail_with_one_line() -> Iterator[None]:
    """Turn errors meant for users into one line on stderr and exit code 1 (2 for wrong usage); an interrupt is 130."""
    try:
        with undisguised(), explained_imports():
            yield
    except KeyboardInterrupt as interrupt:  # a job that keeps what is finished says so
        _fail(f"interrupted; {str(interrupt) or 'nothing unfinished is left'}", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to tell. Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except MemoryError:
        _fail("not enough memory", 1)
    except RuntimeError as error:  # torch's own, whatever was being done
        from quantmill.qkernels.torch_errors import in_words

        said = in_words(error)
        if not said:
            raise
        _fail(said, 1)
    except OSError as error:
        what = error.strerror or str(error)
        _fail(f"{error.filename}: {what}" if error.filename is not None else what, 1)
    except ProblemsError as error:
        print_problems(error.problems)
        raise SystemExit(1) from None
    except QuantmillError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Say what modules warn of, a kernel that is not used for one, as commands say their warnings."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where: print_line(f"warning: {message}")
        yield


def prepare_streams() -> None:
    """What a process may find its streams to be: closed (`>&-`), or of an encoding that lacks our letters.

    A closed one leads nowhere: a file that is opened later must not get its number, and what is meant for the stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _named_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def flush_output() -> None:
    """All results, while what stands in their way can still be told. Raises OSError."""
    with _named_output():
        sys.stdout.flush()


def _fail(message: str, code: int) -> None:
    print_line(f"error: {message}")
    raise SystemExit(code) from None


def print_problems(problems: Sequence[str]) -> None:
    """What makes a job impossible; alike ones as one line, unless --verbose wants each."""
    for problem in problems if is_verbose() else folded(problems):
        print_line(f"error: {problem}")


def set_verbosity(quiet: bool = False, verbose: bool = False) -> None:
    """quiet: warnings and errors only on stderr; verbose: more than usual. Results on stdout are the same."""
    _logger().setLevel("WARNING" if quiet else "DEBUG" if verbose else "INFO")


def is_quiet() -> bool:
    """Whether bars and remarks are unwanted."""
    return _logger().getEffectiveLevel() > _INFO


def is_verbose() -> bool:
    return _logger().level == _DEBUG


_DEBUG, _INFO = 10, 20  # as logging counts


def _logger() -> logging.Logger:
    """Keeps how much is said, where Python programs keep it."""
    import logging  # not for --version and --help

    logger = logging.getLogger("quantmill")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return logger


def print_line(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    sys.stderr.write(escaped(" ".join(text.split("\n"))) + "\n")
    sys.stderr.flush()


def remark(text: str) -> None:
    """A line on stderr about what goes on; --quiet leaves it out."""
    if not is_quiet():
        print_line(text)


def detail(text: str) -> None:
    """A line on stderr for those who asked for --verbose."""
    if is_verbose():
        print_line(text)


def print_warnings(lines: Sequence[str]) -> None:
    """Alike ones as one line, unless --verbose wants each."""
    for warning in lines if is_verbose() else folded(lines):
        print_line(f"warning: {warning}")


def show(text: str) -> None:
    """A result on stdout: a line, or lines whose parts are escaped already (table_text does it)."""
    with _named_output():
        sys.stdout.write(escaped(text, keep="\n") + "\n")


@contextmanager
def _bar(description: str, total: int, columns: Sequence[object]) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, nothing elsewhere: logs want no thousand lines, and rich costs its import."""
    if not bars_are_shown():
        yield lambda amount, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    shown = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    ]
    with Progress(*shown, console=Console(stderr=True), transient=True) as progress:  # type: ignore[arg-type]
        task = progress.add_task(escaped(description), total=total, what="")
        yield lambda amount, what: progress.update(task, advance=amount, what=escaped(what))


def bars_are_shown() -> bool:
    return sys.stderr.isatty() and not is_quiet()


@contextmanager
def bytes_bar(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Gives advance(bytes, what is being worked on); shows bytes, rate and time left."""
    columns: list[object] = []
    if bars_are_shown():
        from rich.progress import DownloadColumn, TransferSpeedColumn

        columns = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    with _bar(description, total, columns) as advance:
        yield advance


@contextmanager
def tokens_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Gives advance(count, what="") for tokens, tasks or chunks; shows how many and the time left."""
    columns: list[object] = []
    if bars_are_shown():
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
    cells = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def command_line() -> str:
    """The command as it was typed, quoted for a shell."""
    import shlex

    return shlex.join(["quantmill", *sys.argv[1:]])
