"""Importance matrices added up, or one of them in the other format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantmill.gguf_io.kinds import IMATRIX
from quantmill.gguf_io.outputs import check_output
from quantmill.imatrix import store
from quantmill.imatrix.coverage import shrunk
from quantmill.imatrix.matrix import ImatrixError, ImportanceMatrix
from quantmill.imatrix.merge import strangers
from quantmill.jobs.watcher import Silent, Watcher


@dataclass(frozen=True)
class Job:
    """format None: by the output's name. chunk_size None: the files' own, of .dat files 512. shrink: see collect."""

    files: tuple[Path, ...]
    output: Path
    format: store.Format | None = None
    chunk_size: int | None = None
    shrink: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if self.shrink < 0:
            raise ImatrixError(f"--shrink-experts {self.shrink}: a number of tokens cannot be negative")


@dataclass(frozen=True)
class Result:
    """lost: what the format does not keep, in words."""

    matrix: ImportanceMatrix
    lost: tuple[str, ...]


def run(job: Job, watcher: Watcher | None = None) -> Result:
    """Merge and save. Raises ImatrixError, GGUFError or OSError."""
    watcher = watcher or Silent()
    output = check_output(job.output, IMATRIX, job.files, force=job.force)
    for warning in output.warnings:
        watcher.warn(warning)
    matrices = [store.load(path, job.chunk_size or store.LEGACY_CHUNK_SIZE) for path in job.files]
    merged = store.merge(matrices, job.chunk_size)
    if strange := strangers(matrices):
        names = ", ".join(str(job.files[i]) for i in strange)
        watcher.warn(f"no tensor in common with the other matrices: {names}; are they of one model?")
    format = job.format or store.format_of(job.output)
    matrix = shrunk(merged, job.shrink)
    store.save(output.final, matrix, format)
    return Result(matrix, _lost(merged) if format == "dat" else ())


def _lost(matrix: ImportanceMatrix) -> tuple[str, ...]:
    """What the .dat format does not keep of it."""
    lost = {
        "counts of single experts": any(len(entry.counts) > 1 for entry in matrix.entries.values()),
        "Σx": any(entry.in_sum is not None for entry in matrix.entries.values()),
        f"{len(matrix.datasets) - 1} of the datasets' names": len(matrix.datasets) > 1,
    }
    return tuple(what for what, is_lost in lost.items() if is_lost)
