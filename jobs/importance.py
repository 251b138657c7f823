"""The importance of a job: what its tensors are searched with, and what planning must know of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantmill.gguf_io import open_source
from quantmill.recipe import ImportanceIndex

if TYPE_CHECKING:
    from quantmill.imatrix.store import ImportanceMatrix
    from quantmill.jobs.quantize_request import Job


def load_importance(job: Job) -> ImportanceMatrix | None:
    """The importance that a job's tensors are searched with, filtered; None without."""
    if job.imatrix is None:
        return None
    return whole_importance(job, job.imatrix).filtered(job.include_weights, job.exclude_weights)


def whole_importance(job: Job, imatrix: str) -> ImportanceMatrix:
    """Of the experts that stay, before it is filtered."""
    from quantmill.imatrix.store import load  # with numpy, which plans without importance do not need

    matrix = load(imatrix)
    if not job.edits.experts:
        return matrix
    from quantmill.jobs.cut_experts import cut_importance

    source = open_source(job.source)
    try:
        return cut_importance(matrix, job.edits.experts, source)
    finally:
        source.close()


def importance_index(job: Job, importance: ImportanceMatrix | None) -> ImportanceIndex | None:
    """What planning must know of the importance."""
    if importance is None or job.imatrix is None:
        return None
    datasets = importance.datasets
    if job.imatrix_name is not None:
        datasets = tuple(Path(name).name for name in datasets)
    return ImportanceIndex(
        job.imatrix_name or job.imatrix,
        {name: entry.n_values for name, entry in importance.entries.items()},
        datasets,
        importance.chunk_count,
    )


def filters_without_use(job: Job, importance: ImportanceMatrix) -> list[str]:
    given = [("--include-weights", text) for text in job.include_weights]
    given += [("--exclude-weights", text) for text in job.exclude_weights]
    return [
        f"{option} {text}: no entry of {job.imatrix} has this in its name"
        for option, text in given
        if not any(text in name for name in importance.entries)
    ]
