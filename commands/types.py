"""quantmill types: every file type and tensor type there is."""

from __future__ import annotations

import typer

from quantmill.commands.console import show, table_text
from quantmill.commands.options import Json
from quantmill.plain_json import json_text

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_IMPORTANCE = {"none": "not used", "optional": "improves it", "required": "required"}


@app.command()
def types(as_json: Json = False) -> None:
    """List the file types (what a whole model can be quantized to) and the types of single tensors."""
    from quantmill.qkernels.types import TYPES
    from quantmill.recipe import FILE_TYPES

    if as_json:
        files = {row.name: {"id": row.id, "base": row.base} for row in FILE_TYPES.values()}
        tensors = {
            row.name: {"id": row.id, "block": row.block, "bytes": row.bytes, "importance": row.importance}
            for row in TYPES.values()
        }
        show(json_text({"file_types": files, "tensor_types": tensors}))
        return
    rows = [("FILE TYPE", "NUMBER", "MOSTLY", "")]
    rows += [(row.name, str(row.id), row.base, row.description) for row in FILE_TYPES.values()]
    rows.append(("COPY", "", "", "keep every tensor: merge, split, prune, change metadata"))
    show(table_text(rows, right=(1,)))
    show("")
    rows = [("TENSOR TYPE", "BITS PER WEIGHT", "ROW LENGTH", "IMPORTANCE")]
    by_size = sorted(TYPES.values(), key=lambda row: row.bits_per_weight)
    rows += [
        (row.name, f"{row.bits_per_weight:.4g}", f"multiple of {row.block}", _IMPORTANCE[row.importance])
        for row in by_size
    ]
    show(table_text(rows, right=(1,)))
