"""`quantmill quantize --target-size`: find the types that lose least in a size, and show what was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmill.commands.console import (
    UsageError,
    bars_are_shown,
    parsing,
    print_warnings,
    remark,
    table_text,
    tokens_bar,
)

if TYPE_CHECKING:
    from quantmill.jobs.allocate import Allocated, Request
    from quantmill.jobs.quantize import Job
    from quantmill.recipe.budget import Target


# What `quantize --compensate` and `--polish` may add to the file: keys that say how it was made.
_KEYS = 4096


def find_target(size: int | None, bpw: float | None, adds_keys: bool) -> Target | None:
    """The size that was asked for, less the keys that --compensate and --polish add; None when none was."""
    if size is not None and bpw is not None:
        raise UsageError("--target-size and --target-bpw cannot be used together")
    if bpw is not None and not 0 < bpw < 64:
        raise UsageError(f"--target-bpw {bpw}: expected bits per weight, for example 4.5")
    if size is not None and adds_keys:
        remark(f"{_KEYS} of {size} bytes are left for the keys that --compensate and --polish add")
        size -= _KEYS
    if size is None and bpw is None:
        return None
    from quantmill.recipe.budget import Target

    return Target(size, bpw)


def find_request(
    job: Job,
    target: Target,
    texts: list[str] | None,
    chunks: int | None,
    smallest: str | None,
    largest: str | None,
) -> Request:
    from quantmill.jobs.allocate import N_CHUNKS, Request
    from quantmill.recipe import parse_type
    from quantmill.recipe.budget import Limits

    text = Path(texts[0]) if texts else None
    with parsing():
        limits = Limits(parse_type(smallest) if smallest else None, parse_type(largest) if largest else None)
    return Request(job, target, text, chunks or N_CHUNKS, limits)


def find(request: Request) -> Allocated:
    """Measure and choose, with bars on stderr."""
    from quantmill.jobs.allocate import run

    remark(f"looking for the types of {request.job.source} that lose least in {request.target}")
    bar = tokens_bar if bars_are_shown() else _tenths
    found = run(request, bar, lambda line: remark(f"{line}; fewer --measure-chunks take less"))
    print_warnings(found.notes)
    return found


@contextmanager
def _tenths(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A line after every tenth, for logs: this may take hours."""
    started, done, shown = time.monotonic(), 0, 0

    def advance(amount: int, what: str) -> None:
        nonlocal done, shown
        done += amount
        tenth = 10 * done // total
        if tenth > shown:
            shown = tenth
            left = (time.monotonic() - started) * (total - done) / done / 60
            remark(f"{description}: {10 * tenth} %, about {left:.0f} minutes left")

    yield advance


def allocation_object(found: Allocated) -> dict[str, Any]:
    """For the JSON object of a plan or a run."""
    return {
        "predicted_loss": found.predicted,
        "measured_loss": found.measured,
        "losses": dict(found.losses),
        "measurements": str(found.kept),
    }


def allocation_text(found: Allocated, recipe: Path | None) -> str:
    """The lines below the table of a plan or a run."""
    unit = "" if found.measured is None else " nats of KL divergence a token"
    rows = [("predicted loss", f"{found.predicted:.5f}{unit}")]
    if found.measured is not None:
        rows.append(("measured", f"{found.measured:.5f}, all tensors together, on held-back chunks"))
    if recipe is not None:
        rows.append(("recipe", str(recipe)))
    return table_text(rows)
