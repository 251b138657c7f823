"""Evaluation records as a page and a model card in one directory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantmill.gguf_io.outputs import Output, check_directory, check_output
from quantmill.gguf_io.renaming import write_all
from quantmill.imatrix.plot import grid
from quantmill.imatrix.statistics import tensor_statistics
from quantmill.imatrix.store import load
from quantmill.jobs.watcher import Silent, Watcher
from quantmill.measure.record import from_json
from quantmill.measure.report import CARD, NO_SETTING, PAGE, HeatMap, Setting, card, collect, page


@dataclass(frozen=True)
class Job:
    """records: what `quantmill evaluate -o` wrote. directory: for index.html and README.md, made when it is not there.

    title None: the base's name. imatrix: an importance matrix to show by layer. base_model, license_name, repository:
    for the card. force: replace a page or card that quantmill did not write. setting: what a squeeze adds.
    """

    records: tuple[Path, ...]
    directory: Path
    title: str | None = None
    imatrix: Path | None = None
    base_model: str | None = None
    license_name: str | None = None
    repository: str | None = None
    force: bool = False
    setting: Setting = NO_SETTING


def run(job: Job, watcher: Watcher | None = None) -> tuple[Path, ...]:
    """Write the page and the card; gives their paths. Raises MeasureError, ImatrixError, GGUFError or OSError."""
    watcher = watcher or Silent()
    outputs: list[Output] = []
    inputs = [*job.records, *([job.imatrix] if job.imatrix else [])]
    check_directory(job.directory)
    if job.directory.exists():
        for name, kind in (("index.html", PAGE), ("README.md", CARD)):
            outputs.append(check_output(job.directory / name, kind, inputs, force=job.force, others=outputs))
    maps = [_importance(job.imatrix)] if job.imatrix else []
    report = collect([from_json(path) for path in job.records], job.title, maps)
    texts = {
        "index.html": page(report, job.setting),
        "README.md": card(report, job.base_model, job.license_name, job.repository, job.setting),
    }
    for output in outputs:
        for warning in output.warnings:
            watcher.warn(warning)
    job.directory.mkdir(parents=True, exist_ok=True)
    paths = tuple(job.directory / name for name in texts)
    write_all(
        {path.resolve(): text.encode("utf-8") for path, text in zip(paths, texts.values(), strict=True)}
    )
    return paths


def _importance(path: Path) -> HeatMap:
    """Σ(Act²) of each tensor, on a logarithmic scale within its kind: only one kind's values compare."""
    layers, kinds, values = grid(tensor_statistics(load(path)), "total")
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    level = np.nan_to_num((values - low) / np.where(high > low, high - low, 1.0))
    text, hint = [], []
    for layer, row in zip(layers, values.tolist(), strict=True):
        known = [not math.isnan(value) for value in row]
        text.append(tuple(f"{v:.1f}" if k else "" for v, k in zip(row, known, strict=True)))
        hint.append(
            tuple(f"blk.{layer}.{kind}: log10 Σ(Act²) {v:.3f}" for kind, v in zip(kinds, row, strict=True))
        )
    return HeatMap(
        title=f"{path.name}: importance, log10 Σ(Act²), shaded within each kind of tensor",
        kinds=tuple(kinds),
        layers=tuple(str(layer) for layer in layers),
        text=tuple(text),
        level=tuple(map(tuple, level.tolist())),
        hint=tuple(hint),
    )
