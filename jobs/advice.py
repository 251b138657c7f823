"""Why something cannot be done, in the words of the model, and what its owner can do about it."""

from __future__ import annotations

import numpy as np

from quantmill.jobs.errors import JobError
from quantmill.qkernels import QuantizeError, quantize
from quantmill.qkernels.types import TYPES
from quantmill.recipe import PlanEntry


def unfit_row(
    entry: PlanEntry, number: int, row: np.ndarray, importance: np.ndarray | None, way_out: str
) -> JobError:
    """The error for a row, f32 [n_cols], whose scales the type of `entry` cannot hold. way_out: another type for it.

    A scale leaves its format for one of three reasons: the weights are too large, they are so small that its
    reciprocal is infinite, or sums weighted by importance overflow.
    """
    where = f"{entry.name}: row {number}"
    if importance is not None and _fits(row, entry.type, None):
        return JobError(
            f"{where}: the importance, {importance.min():.3g} to {importance.max():.3g}, makes the sums of the search "
            f"for {entry.type} overflow; collect it again, or leave it out (--exclude-weights {entry.source})"
        )
    first, last = _bad_columns(row, entry.type, importance)
    weights = np.abs(row[first : last + 1])
    largest = float(weights.max())
    if largest > 1:  # far above it: the smallest limit is F16's own, 65504
        return JobError(
            f"{where}: {largest:.4g} in column {first + int(weights.argmax())} is too large for "
            f"{_what_holds(entry.type)}; {way_out}"
        )
    return JobError(
        f"{where}: the weights in columns {first} to {last}, at most {largest:.4g}, are too small for "
        f"{_what_holds(entry.type)}; {way_out}"
    )


def _what_holds(type: str) -> str:
    return type if TYPES[type].family == "plain" else f"the scales of {type}"


def _bad_columns(row: np.ndarray, type: str, importance: np.ndarray | None) -> tuple[int, int]:
    """First and last column of the first block that fails alone; the whole row where none does."""
    step = TYPES[type].block
    for first in range(0, len(row), step):
        columns = slice(first, first + step)
        if not _fits(row[columns], type, None if importance is None else importance[columns]):
            return first, first + step - 1
    return 0, len(row) - 1


def _fits(weights: np.ndarray, type: str, importance: np.ndarray | None) -> bool:
    if importance is None and TYPES[type].importance == "required":
        importance = np.ones(len(weights), np.float32)
    try:
        quantize(weights[None], type, importance, threads=1)
    except QuantizeError:
        return False
    return True
