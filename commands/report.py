"""quantmill report: evaluation records as an HTML page and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantmill.commands.console import show
from quantmill.commands.options import Force, Json
from quantmill.commands.watching import Shown
from quantmill.plain_json import json_text

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Records that quantmill evaluate -o wrote.")],
    out: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="Directory for index.html and README.md.")
    ] = Path("report"),
    title: Annotated[str | None, typer.Option(help="Heading. [default: the base's name]")] = None,
    imatrix: Annotated[Path | None, typer.Option(help="An importance matrix to show by layer.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Repository of the original model, for the card.")
    ] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Licence, for the card.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repo", help="Where the files will lie on the hub, for the card.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a self-contained page (OUT/index.html) and a Hugging Face model card (OUT/README.md)."""
    from quantmill.jobs.report import Job, run

    job = Job(tuple(runs), out, title, imatrix, base_model, license_name, repository, force)
    with Shown() as watcher:
        paths = run(job, watcher)
    if as_json:
        show(json_text({"outputs": [str(path) for path in paths]}))
    else:
        for path in paths:
            show(str(path))
