"""Matrices as the solver has them in the middle of its work, and what becomes of their blocks of columns."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any

import torch

from quantmill.calibrate.columns import COLUMNS, Descending, Feeding, Levels
from quantmill.calibrate.gram import Metric, metric_of
from quantmill.calibrate.rounding import reciprocal
from quantmill.qkernels.lattices import lattice_of

TILES = (16, 32)  # rows of a program, the default first
CPU = torch.device("cpu")


@dataclass
class Made:
    """Of each block: what its work changes before and after, and what it gives."""

    before: list[list[torch.Tensor]]
    after: list[list[torch.Tensor]]
    given: list[torch.Tensor]


def metric(n_mat: int, n_cols: int) -> Metric:
    generator = torch.Generator().manual_seed(n_cols)
    mixing = torch.randn(n_mat, n_cols, n_cols, generator=generator) * 0.1 + torch.eye(n_cols)
    inputs = torch.randn(n_mat, 2 * n_cols, n_cols, generator=generator) @ mixing
    return metric_of(inputs.transpose(1, 2) @ inputs / (2 * n_cols), 0.01)


def works(type: str, n_mat: int, n_cols: int, n_rows: int) -> tuple[Feeding, Descending]:
    """Random weights under scales that suit them; a group of zeros has the scale 0."""
    generator = torch.Generator().manual_seed(n_rows)
    lattice = lattice_of(type)
    target = torch.randn(n_mat, n_cols, n_rows, generator=generator)
    n_groups = n_cols // lattice.group
    widest = max(map(abs, lattice.levels))
    scale = (0.5 + torch.rand(n_mat, n_groups, n_rows, generator=generator)) * 2 / widest
    scale[:, 0, 3] = 0
    low = torch.rand(n_mat, n_groups, n_rows, generator=generator) if lattice.has_min else None
    spread = [None if one is None else one.repeat_interleave(lattice.group, 1) for one in (scale, low)]
    of = metric(n_mat, n_cols)
    weight_of = 1 / of.feedback.diagonal(dim1=-2, dim2=-1)
    feeding = Feeding(
        target.clone(),
        torch.empty_like(target),
        spread[0],
        reciprocal(spread[0]),
        spread[1],
        of.feedback,
        weight_of,
    )
    levels = Levels(lattice, CPU)
    values = levels.values[torch.randint(0, len(levels.legal), target.shape, generator=generator)]
    error = values * spread[0] - (0 if spread[1] is None else spread[1]) - target
    given = (scale, reciprocal(scale), low, lattice.group, of.moments, 1 / of.diagonal)
    return feeding, Descending(target, values, error, of.moments @ error, *given)


def again(work: Any) -> Any:
    """The same work with memory of its own, laid out as it was."""
    parts = {one.name: getattr(work, one.name) for one in fields(work)}
    return work.__class__(**{name: copy.deepcopy(part) for name, part in parts.items()})


def gone_through(columns: Any, type: str, given: Any, **more: int) -> Made:
    """Block after block by the functions of a module. The matmuls between blocks are left out."""
    work, levels, made = again(given), Levels(lattice_of(type), CPU), Made([], [], [])
    name = "feed_columns" if isinstance(work, Feeding) else "descend_columns"
    n_cols = work.scale.shape[1] if isinstance(work, Feeding) else work.target.shape[1]
    for begin in range(0, n_cols, COLUMNS):
        end = min(begin + COLUMNS, n_cols)
        made.before.append([part.clone() for part in work.changed(begin, end)])
        made.given.append(getattr(columns, name)(work, levels, begin, end, **more))
        made.after.append([part.clone() for part in work.changed(begin, end)])
    return made
