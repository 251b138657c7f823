"""quantmill publish: what squeeze made, to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantmill.commands.console import parsing, show, size_text, table_text
from quantmill.commands.options import DryRun, Endpoint, Json
from quantmill.commands.watching import Shown
from quantmill.plain_json import json_text

if TYPE_CHECKING:
    from quantmill.jobs.publish import Plan

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def publish(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that squeeze made.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Made where it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is for yourself.")] = False,
    endpoint: Endpoint = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Upload the files of a squeeze with their card.

    Before it begins: every file is whole, by its hash, and in the card; you are logged in (hf auth login) and may write
    there. What is there already is not sent again, so that the same command goes on with an upload that was stopped.
    """
    from quantmill.jobs.hub import Hub
    from quantmill.jobs.publish import Job, plan_job, run

    with parsing():
        job = Job(directory, repository, private, Hub(endpoint))
    with Shown() as watcher:
        if dry_run:
            plan, url = plan_job(job, watcher), None
        else:
            result = run(job, watcher)
            plan, url = result.plan, result.url
    show(json_text(_object(plan, url)) if as_json else _text(plan, url, repository))


def _text(plan: Plan, url: str | None, repository: str) -> str:
    rows = [(path.name, size_text(path.stat().st_size)) for path in plan.files]
    end = (
        f"published: {url}"
        if url
        else f"{size_text(plan.n_bytes)} would go to {repository}; nobody was asked"
    )
    left = [f"not in the card, and left out: {path.name}" for path in plan.others] if url is None else []
    return "\n".join([table_text(rows, right=(1,)), "", *left, end])


def _object(plan: Plan, url: str | None) -> dict[str, Any]:
    return {
        "files": [{"path": str(path), "bytes": path.stat().st_size} for path in plan.files],
        "left_out": [str(path) for path in plan.others],
        "url": url,
    }
