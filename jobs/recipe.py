"""Recipe files on disk."""

from __future__ import annotations

from pathlib import Path

from quantmill.jobs.errors import JobError
from quantmill.recipe import RecipeFile, parse_recipe


def read_recipe(path: Path) -> RecipeFile:
    """The recipe in a file. Raises RecipeError or JobError for what it holds, OSError when unreadable."""
    raw = path.read_bytes()
    try:
        return parse_recipe(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: is no recipe, byte {error.start} is not UTF-8 text") from None
