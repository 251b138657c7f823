"""A collection that can be stopped: saved every so many chunks, on an interrupt and on an error, and resumed.

Until it is complete it lies in `<output>.partial.gguf` (unfinished.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.errors import counted, left_behind
from quantmill.gguf_io.convert.names import TensorTable
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.partial import companion
from quantmill.imatrix.collect import Done, Progress, Result, Settings, collect
from quantmill.imatrix.matrix import ImatrixError, ImportanceMatrix
from quantmill.imatrix.unfinished import load_unfinished, save_unfinished
from quantmill.models.workers import ALONE, Workers

Show = Callable[[Progress], None]
Warn = Callable[[str], None]
Collecting = Callable[[Any, TensorTable, np.ndarray, Settings, Result, Workers], Iterator[Progress]]


def partial_of(output: Path) -> Path:
    """Where a run to this output keeps what it has done."""
    return companion(output, ".partial.gguf")


@dataclass(frozen=True)
class Saving:
    """output: the final file, links followed; every: chunks between two saves, 0: only when stopped
    datasets: names of the texts, kept in the file; resume: go on with the partial file
    model: which, and how it computes, so that a partial file finds its run again
    """

    output: Path
    datasets: tuple[str, ...]
    model: str
    every: int = 10
    resume: bool = False

    @property
    def partial(self) -> Path:
        return partial_of(self.output)

    @property
    def advice(self) -> str:
        """What an interrupted user can do."""
        if self.partial.exists():
            return f"what was done is in {self.partial}: go on with --resume"
        return "no batch was complete yet"


def run(
    model: Any,
    table: TensorTable,
    chunks: np.ndarray,
    settings: Settings,
    saving: Saving,
    show: Show = lambda progress: None,
    warn: Warn = lambda message: None,
    workers: Workers = ALONE,
    collecting: Collecting = collect,
) -> tuple[ImportanceMatrix, Result]:
    """Collect over chunks [n_chunk, n_ctx] i32; the finished matrix is returned, the caller saves it.

    collecting: how; what it takes for the model is `model`.

    Whatever stops the run, the whole batches done until then are in the partial file. Raises ImatrixError as
    collect() does, and when the partial file belongs to another run.
    """
    identity = _identity(chunks, settings, saving)
    result = Result(_begun(saving, identity))
    saved = tried = result.n_done

    def matrix() -> ImportanceMatrix:
        return result.matrix(saving.datasets, chunks.shape[1])

    def keep() -> None:
        save_unfinished(saving.partial, matrix(), result.done, identity)

    try:
        for progress in collecting(model, table, chunks, settings, result, workers):
            show(progress)
            if saving.every and result.n_done - tried >= saving.every and result.n_done < len(chunks):
                tried = result.n_done
                try:
                    keep()
                    saved = result.n_done
                except (GGUFError, OSError) as error:  # a full disk must not end a run of hours
                    warn(f"not saved after {counted(result.n_done, 'chunk')}: {error}")
    except BaseException:
        if result.n_done > saved:
            keep()
        raise
    return matrix(), result


def _identity(chunks: np.ndarray, settings: Settings, saving: Saving) -> str:
    """A hash of all that decides the sums: the text, the options, the model."""
    options = {name: value for name, value in asdict(settings).items() if name != "batch"}
    described = json.dumps([options, list(chunks.shape), saving.model], sort_keys=True)
    text = np.ascontiguousarray(chunks, "<i4").tobytes()
    return hashlib.sha256(described.encode("utf-8", "surrogateescape") + text).hexdigest()


def _begun(saving: Saving, identity: str) -> Done:
    if not saving.partial.exists():
        return Done()
    if not saving.resume:
        raise ImatrixError(left_behind(saving.partial))
    return load_unfinished(saving.partial, identity)
