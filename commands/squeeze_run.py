"""Running `quantmill squeeze`: its plan, its work with whoever watches, where a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from quantmill.commands.console import UsageError, bars_are_shown, print_problems, show
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.squeeze_request import Job


def show_status(model: str | None, directory: Path, as_json: bool) -> None:
    from quantmill.commands.squeeze_tables import status_object, status_text
    from quantmill.jobs.squeeze_status import status_of

    if model is not None:
        raise UsageError(f"--status {directory} asks about a run; leave out {model}")
    found = status_of(directory)
    show(json_text(status_object(found)) if as_json else status_text(found))


def show_plan(job: Job, as_json: bool) -> None:
    from quantmill.commands.squeeze_tables import plan_object, plan_text
    from quantmill.jobs.squeeze import plan_job

    found = plan_job(job)
    show(json_text(plan_object(found)) if as_json else plan_text(found))
    if found.problems:
        print_problems(found.problems)
        raise typer.Exit(1)


def run_and_show(job: Job, events: bool, as_json: bool) -> None:
    from quantmill.commands.squeeze_tables import result_object, result_text
    from quantmill.commands.squeeze_view import Events, Lines, Live
    from quantmill.jobs.squeeze import run

    if events:
        with Events() as told:
            result = run(job, told)
            told.event("result", result_object(result))
        return
    with Live() if bars_are_shown() else Lines() as watcher:
        result = run(job, watcher)
    show(json_text(result_object(result)) if as_json else result_text(result))
