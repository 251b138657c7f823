"""The output matrix of a model: solved as a layer's matrices are, but for its rows, which are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from quantmill.calibrate.errors import naming
from quantmill.calibrate.layer import (
    Made,
    SeenOutput,
    Settings,
    column_parts,
    fitted_metric,
    moments_of,
    side_by_side,
    solved,
)
from quantmill.calibrate.targets import Shares
from quantmill.models.workers import Workers
from quantmill.qkernels import to_float32

ROWS_WEIGHTS = 1 << 25  # weights of the rows that have a target at a time; part of what decides the bytes


def quantize_output(
    output: SeenOutput, type: str, settings: Settings, workers: Workers, two_streams: bool
) -> Made:
    """Blocks for the matrix. Every slab of rows takes as much of the target's correction as serves it best."""
    walk, place = output.walk, output.place
    name = place.takers[0][0]
    parts = column_parts(place.n_cols, settings.widest)
    found = []
    for part in parts:
        only = None if len(parts) == 1 else part
        moments = output.visit(moments_of(walk, place, two_streams, only))
        metric = fitted_metric(moments, settings)
        slabs = []
        for rows in row_slabs(output):
            weights = _rows(output, rows)[..., part]
            with naming(name):
                slabs += solved([weights], [name], type, settings, moments, metric, workers)
        found.append(_one_below_the_other(slabs))
    return side_by_side(found)


def row_slabs(output: SeenOutput) -> list[slice]:
    """Rows that are treated together."""
    n_rows = output.walk.loaded.table.views[output.place.takers[0][0]].shape[-2]
    step = rows_together(output.place.n_cols)
    return [slice(first, min(first + step, n_rows)) for first in range(0, n_rows, step)]


def rows_together(n_cols: int) -> int:
    return max(1, ROWS_WEIGHTS // n_cols)


def _rows(output: SeenOutput, rows: slice) -> torch.Tensor:
    """[1, n_rows, n_cols] f32."""
    loaded = output.walk.loaded
    assert loaded.source is not None
    name = output.place.takers[0][0]
    type = next(spec.type for spec in loaded.source.specs() if spec.name == name)
    raw = loaded.source.read(name, rows.start, rows.stop - rows.start)
    return torch.from_numpy(to_float32(raw, type).copy())[None].to(loaded.device)


def _one_below_the_other(slabs: Sequence[Made]) -> Made:
    n_rows = np.array([slab.blocks.shape[1] for slab in slabs])
    shares = np.array([(slab.shares.input, slab.shares.residual) for slab in slabs])
    fitted, held = (np.array([getattr(slab, part) for slab in slabs]).sum(0) for part in ("fitted", "held"))
    return replace(
        slabs[0],
        blocks=np.concatenate([slab.blocks for slab in slabs], 1),
        shares=Shares(*(n_rows @ shares / n_rows.sum()).tolist()),
        fitted=tuple(fitted.tolist()),
        held=tuple(held.tolist()),
    )
