"""A collection that can be stopped: saved every so many chunks, on an interrupt and on an error, and resumed.

Until it is complete the matrix lies in `<output>.partial.gguf`, which any tool can read; the key
`quantmill.imatrix.run` in it says which chunks of which run it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantmill.errors import counted
from quantmill.gguf_io.convert.names import TensorTable
from quantmill.gguf_io.errors import GGUFError
from quantmill.gguf_io.partial import companion
from quantmill.imatrix.collect import Progress, Result, Settings, collect
from quantmill.imatrix.matrix import ImatrixError, ImportanceMatrix
from quantmill.imatrix.merge import merge
from quantmill.imatrix.store import load, save
from quantmill.models.workers import ALONE, Workers

Show = Callable[[Progress], None]
Warn = Callable[[str], None]
Collecting = Callable[[Any, TensorTable, np.ndarray, Settings, Result, Workers], Iterator[Progress]]


@dataclass(frozen=True)
class Saving:
    """output: the final file, links followed; every: chunks between two saves, 0: only when stopped
    datasets: names of the texts, kept in the file; model: its name, so that a partial file finds its run again
    resume: go on with the partial file
    """

    output: Path
    datasets: tuple[str, ...]
    model: str
    every: int = 10
    resume: bool = False

    @property
    def partial(self) -> Path:
        return companion(self.output, ".partial.gguf")

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
    before, result = _begun(saving, identity)
    first = saved = tried = result.n_done

    def matrix() -> ImportanceMatrix:
        new = result.matrix(saving.datasets, chunks.shape[1])
        if before is None or result.n_done == first:
            return new if before is None else before
        # the counts of both runs add up; the number of chunks is known better than from them
        return replace(merge([before, new]), datasets=saving.datasets, chunk_count=result.n_done)

    def keep() -> None:
        state = {"identity": identity, "nll": result.nll, "nll2": result.nll2, "n_scored": result.n_scored}
        save(saving.partial, replace(matrix(), run=json.dumps(state)), "gguf")

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
    return replace(matrix(), run=""), result


def _identity(chunks: np.ndarray, settings: Settings, saving: Saving) -> str:
    """A hash of all that decides the sums, but for the weights: the text, the options and the model's name."""
    options = {name: value for name, value in asdict(settings).items() if name != "batch"}
    described = json.dumps([options, list(chunks.shape), saving.model], sort_keys=True)
    text = np.ascontiguousarray(chunks, "<i4").tobytes()
    return hashlib.sha256(described.encode("utf-8", "surrogateescape") + text).hexdigest()


def _begun(saving: Saving, identity: str) -> tuple[ImportanceMatrix | None, Result]:
    if not saving.partial.exists():
        return None, Result()
    if not saving.resume:
        raise ImatrixError(
            f"{saving.partial}: a run that was stopped left this; go on with --resume, or remove it to begin anew"
        )
    found = load(saving.partial)
    try:
        state = json.loads(found.run)
        same = state["identity"] == identity
        result = Result(
            n_done=found.chunk_count,
            nll=float(state["nll"]),
            nll2=float(state["nll2"]),
            n_scored=int(state["n_scored"]),
        )
    except (ValueError, KeyError, TypeError):
        raise ImatrixError(
            f"{saving.partial}: does not say how far it got; remove it to begin anew"
        ) from None
    if not same:
        raise ImatrixError(
            f"{saving.partial}: belongs to another run (model, text or options differ); repeat the command that "
            "wrote it, or remove it to begin anew"
        )
    return found, result
