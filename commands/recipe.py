"""quantmill recipe: which type each tensor of a GGUF has, as a file that people read and quantize follows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantmill.commands.console import show

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def recipe(
    model: Annotated[
        Path, typer.Argument(metavar="FILE.gguf", help="Of a split model its first file; whoever made it.")
    ],
) -> None:
    """Print the recipe of a GGUF: the type of every tensor that can be quantized, as few patterns as can be.

    quantmill recipe theirs.gguf > theirs.toml; quantmill quantize --recipe theirs.toml model-f16.gguf ours.gguf
    """
    from quantmill.gguf_io import open_source
    from quantmill.recipe import lift
    from quantmill.recipe.recipe_file import recipe_text

    source = open_source(model)
    try:
        show(recipe_text(lift.recipe_of(source.specs(), source.metadata, model.name)).rstrip("\n"))
    finally:
        source.close()
