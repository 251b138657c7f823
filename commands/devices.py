"""quantmill devices: what can quantize here, and which engine serves it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """List the devices found here, the engine that serves each, and what --device auto takes."""
    from rich.console import Console
    from rich.table import Table

    from quantmill.qkernels.engines import available_engines, choose_engines, describe

    (chosen,) = choose_engines("auto")
    rows = [{**asdict(engine), "what": describe(engine.device)} for engine in available_engines()]
    if as_json:
        typer.echo(json.dumps({"devices": rows, "auto": asdict(chosen)}, indent=2))
        return
    table = Table("device", "what", "engine", "why", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["device"], row["what"], row["name"], row["why"])
    console = Console()
    console.print(table)
    console.print(f"\n--device auto takes {chosen.device}: {chosen.why}", highlight=False)
