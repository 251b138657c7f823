"""The statistics of an importance matrix: as a file of numbers, as a heat map."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantmill.gguf_io.kinds import Kind, json_object, starting_with
from quantmill.gguf_io.outputs import Output, check_output
from quantmill.gguf_io.renaming import write_all
from quantmill.imatrix.matrix import ImatrixError
from quantmill.imatrix.plot import PLOT, plot, require_plot
from quantmill.imatrix.statistics import TensorStatistics, layer_statistics, tensor_statistics
from quantmill.imatrix.store import load
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.plain_json import json_text

JSON = json_object("statistics of an importance matrix", "tensors", "layers")
CSV = starting_with("a table of statistics of an importance matrix", b"name,layer,kind,total")


@dataclass(frozen=True)
class Job:
    """output: .json or .csv; plot: .html, .png or .svg, of one statistic (imatrix.plot.STATISTICS)."""

    file: Path
    output: Path | None = None
    plot: Path | None = None
    statistic: str = "total"
    force: bool = False

    def __post_init__(self) -> None:
        if self.output is not None:
            _kind(self.output)
        require_plot(self.plot, self.statistic)


def run(job: Job, watcher: Watcher | None = None) -> list[TensorStatistics]:
    """The statistics of each tensor; written where that is asked for. Raises ImatrixError, GGUFError or OSError."""
    watcher = watcher or Silent()
    outputs: list[Output] = []
    if job.output is not None:
        outputs.append(check_output(job.output, _kind(job.output), [job.file], force=job.force))
    if job.plot is not None:
        outputs.append(check_output(job.plot, PLOT, [job.file], force=job.force, others=outputs))
    for output in outputs:
        for warning in output.warnings:
            watcher.warn(warning)
    rows = tensor_statistics(load(job.file))
    write_all({output.final: _content(job, rows, output) for output in outputs})
    return rows


def _content(job: Job, rows: Sequence[TensorStatistics], output: Output) -> bytes:
    if output.kind is PLOT:
        return plot(rows, output.path.suffix, job.file.name, job.statistic)
    text = statistics_json(rows) if output.kind is JSON else statistics_csv(rows)
    return (text + "\n").encode("utf-8")


def _kind(path: Path) -> Kind:
    kinds = {".json": JSON, ".csv": CSV}
    if path.suffix.lower() not in kinds:
        raise ImatrixError(f"{path}: statistics are written as .json or as .csv; give the file such a name")
    return kinds[path.suffix.lower()]


def statistics_json(rows: Sequence[TensorStatistics]) -> str:
    layers = layer_statistics(rows)
    return json_text({"tensors": [asdict(row) for row in rows], "layers": [asdict(row) for row in layers]})


def statistics_csv(rows: Sequence[TensorStatistics]) -> str:
    """A row a tensor; what the means of the activations say in columns x_…, where they were kept."""
    flat: list[dict[str, Any]] = []
    for row in rows:
        record = asdict(row)
        means = record.pop("means") or {}
        flat.append(record | {f"x_{name}": value for name, value in means.items()})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, max(flat, key=len), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue().rstrip("\n")
