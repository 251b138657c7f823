"""`quantmill quantize --compensate`: what it shows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from quantmill.commands.console import (
    parsing,
    print_warnings,
    remark,
    show,
    size_text,
    table_text,
    tokens_bar,
)
from quantmill.commands.polish import Added
from quantmill.commands.quantize_tables import fallback_warning, plan_object, result_object, result_text
from quantmill.errors import counted
from quantmill.jobs.compensate import run
from quantmill.jobs.compensate_plan import plan_job
from quantmill.jobs.compensate_request import DAMPING, EFFORT, Calibration
from quantmill.jobs.compensated import Compensated
from quantmill.jobs.quantize import Job
from quantmill.jobs.watcher import Silent
from quantmill.plain_json import json_text
from quantmill.recipe import Plan


class _Noting(Silent):
    """What a dry run says beside the plan."""

    def note(self, line: str) -> None:
        remark(line)


class _Shown:
    """A bar of layers with the time left, on a terminal; elsewhere a line for each layer."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._job, self._stack = job, stack
        self._bar_of = 0
        self._begin = time.perf_counter()

    def note(self, line: str) -> None:
        remark(line)

    def planned(self, plan: Plan) -> None:
        remark(
            f"quantizing {self._job.source} to {self._job.output} as {self._job.recipe.file_type}, compensated"
        )
        print_warnings([*fallback_warning(plan), *plan.warnings])

    def warn(self, line: str) -> None:
        print_warnings([line])

    def began(self, what: str, total: int, unit: str) -> None:
        remark(f"{what}, {total} {unit}")

    def progressed(self, amount: int, what: str = "") -> None:
        """Layers are what the bar counts."""

    def layer_done(self, done: int, n_layers: int) -> None:
        if not self._bar_of:
            self._advance = self._stack.enter_context(tokens_bar("layers", n_layers))
            self._bar_of = n_layers
        self._advance(1, f"layer {done} of {n_layers}")
        if not sys.stderr.isatty():
            minutes = (time.perf_counter() - self._begin) / 60
            remark(
                f"layer {done} of {n_layers}, {minutes:.1f} minutes, {minutes / done * (n_layers - done):.1f} left"
            )


def ways(
    texts: tuple[str, ...],
    effort: str | None,
    chunks: int | None,
    alpha: float | None,
    damping: float | None,
    resume: bool,
    polish: bool,
    keep_norms: bool,
) -> tuple[Callable[..., None], Callable[[Job], Plan]]:
    """How a job is done with compensation, and how it is planned; None: as usual. Raises JobError."""
    damping = DAMPING if damping is None else damping
    with parsing():
        calibration = Calibration(texts, effort or EFFORT, chunks, alpha, damping, resume, polish, keep_norms)
    return partial(compensate_and_show, calibration=calibration), partial(
        plan_job, calibration=calibration, watcher=_Noting()
    )


def compensate_and_show(
    job: Job,
    calibration: Calibration,
    as_json: bool,
    extra: Mapping[str, Any] | None = None,
    further: Callable[[Sequence[Path]], Added] | None = None,
) -> None:
    """further: what is done to the finished files, and what it adds to the result; extra: goes into the JSON object."""
    with ExitStack() as stack:
        result = run(job, calibration, _Shown(job, stack))
    added, below = further(result.paths) if further else ({}, "")
    if as_json:
        parts = (plan_object(result.plan), result_object(result), _object(result), extra or {}, added)
        show(json_text({key: value for part in parts for key, value in part.items()}))
    else:
        show(f"{result_text(result)}\n\n{_text(result)}" + (f"\n\n{below}" if below else ""))
    if result.plainly:
        more = f" and {len(result.plainly) - 1} more" if len(result.plainly) > 1 else ""
        remark(f"without compensation: {result.plainly[0]}{more}")


def _object(result: Compensated) -> dict[str, object]:
    return {
        "calibration": {"chunks": result.n_chunks, "held_back": result.n_held},
        "errors": [vars(error) for error in result.errors],
        "uncompensated": list(result.plainly),
        "peak_bytes": result.peak_bytes,
        "device_peak_bytes": result.device_peak_bytes,
    }


def _text(result: Compensated) -> str:
    """Errors of outputs by kind of tensor, as multiples of those of plain codes for the same target."""
    rows: list[tuple[str, ...]] = [
        ("tensors", "type", "count", "error fitted", "held back", "input share", "residual share")
    ]
    for error in result.errors:
        ratios = (f"{error.fitted:.3f}", f"{error.held:.3f}", *(f"{share:.2f}" for share in error.shares))
        rows.append((error.kind, error.type, str(error.n_tensors), *ratios))
    sizes = [(result.peak_bytes, "memory"), (result.device_peak_bytes, "the GPU's")]
    memory = "".join(f", {size_text(size)} of {what} at most" for size, what in sizes if size)
    closing = (
        f"{counted(result.n_chunks, 'chunk')} of text, {result.n_held} of them held back; "
        f"{result.seconds / 60:.1f} minutes{memory}; errors are multiples of plain codes'"
    )
    return f"{table_text(rows, right=(2, 3, 4, 5, 6))}\n{closing}"
