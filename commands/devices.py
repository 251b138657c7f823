"""quantmill devices: what can quantize here, and which engine serves it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from quantmill.commands.console import show, table_text
from quantmill.commands.options import Json
from quantmill.plain_json import json_text

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def devices(as_json: Json = False) -> None:
    """List the devices found here, the engine that serves each, and what --device auto takes."""
    from quantmill.qkernels.engines import available_engines, choose_engines, describe

    (chosen,) = choose_engines("auto")
    rows = [{**asdict(engine), "what": describe(engine.device)} for engine in available_engines()]
    if as_json:
        show(json_text({"devices": rows, "auto": asdict(chosen)}))
        return
    columns = {"DEVICE": "device", "WHAT": "what", "ENGINE": "name", "WHY": "why"}
    show(table_text([tuple(columns), *(tuple(row[key] for key in columns.values()) for row in rows)]))
    show(f"\n--device auto takes {chosen.device}: {chosen.why}")
