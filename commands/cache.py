"""quantmill cache: what is kept between runs: machine code, tables and measurements that would be made anew."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from quantmill.commands.console import show, size_text, table_text
from quantmill.commands.options import Json
from quantmill.plain_json import json_text

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def cache(
    clear: Annotated[
        bool,
        typer.Option(
            "--clear", help="Remove all of it; it is made again when needed, measurements in minutes."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show where quantmill keeps compiled searches, tables, answers about devices and what --target-size and pruning
    measured, and how large they are.

    Models from the hub are not among them: they lie in huggingface_hub's own cache (`hf cache ls`).
    """
    from quantmill.gguf_io.filesystem import bytes_in
    from quantmill.qkernels.cache import cache_dir

    root = cache_dir("").resolve()
    kinds = (
        {path.name: bytes_in(path) for path in sorted(root.iterdir()) if path.is_dir()}
        if root.is_dir()
        else {}
    )
    total = sum(kinds.values())
    if clear and root.is_dir():
        shutil.rmtree(root)
    if as_json:
        show(json_text({"directory": str(root), "bytes": kinds, "total": total, "cleared": clear}))
        return
    rows = [("directory", str(root)), *((kind, size_text(size)) for kind, size in kinds.items())]
    show(table_text([*rows, ("removed" if clear else "total", size_text(total))]))
