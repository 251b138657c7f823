"""What every job that runs a model asks before its work: whether quantmill can run this one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from quantmill.gguf_io import TensorSource, open_source
from quantmill.models.family import directory_family, facts_of, runnable_family


def require_runnable(path: str | Path, source: TensorSource | None = None) -> None:
    """source: where it is open already. Reads settings and names of tensors only.

    Raises ModelError, naming the way out; GGUFError or OSError for what is no model.
    """
    path = Path(path)
    if source is not None:
        runnable_family(facts_of(source, path), path)
    elif path.is_dir():
        directory_family(path)
    else:
        with closing(open_source(path)) as opened:
            runnable_family(facts_of(opened, path), path)
