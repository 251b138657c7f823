"""quantmill types: every file type and tensor type there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from quantmill.commands.console import table_text

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_IMPORTANCE = {"none": "not used", "optional": "improves it", "required": "required"}


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def types(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the file types (what a whole model can be quantized to) and the types of single tensors."""
    from quantmill.qkernels.types import TYPES
    from quantmill.recipe import FILE_TYPES

    if as_json:
        files = {row.name: {"id": row.id, "base": row.base} for row in FILE_TYPES.values()}
        tensors = {
            row.name: {"id": row.id, "block": row.block, "bytes": row.bytes, "importance": row.importance}
            for row in TYPES.values()
        }
        typer.echo(json.dumps({"file_types": files, "tensor_types": tensors}))
        return
    rows = [("FILE TYPE", "NUMBER", "MOSTLY", "")]
    rows += [(row.name, str(row.id), row.base, row.description) for row in FILE_TYPES.values()]
    rows.append(("COPY", "", "", "keep every tensor: merge, split, prune, change metadata"))
    typer.echo(table_text(rows, right=(1,)))
    typer.echo()
    rows = [("TENSOR TYPE", "BITS PER WEIGHT", "ROW LENGTH", "IMPORTANCE")]
    by_size = sorted(TYPES.values(), key=lambda row: row.bits_per_weight)
    rows += [
        (row.name, f"{row.bits_per_weight:.4g}", f"multiple of {row.block}", _IMPORTANCE[row.importance])
        for row in by_size
    ]
    typer.echo(table_text(rows, right=(1,)))
