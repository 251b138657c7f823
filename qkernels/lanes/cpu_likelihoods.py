"""The functions of cpu_likelihood_driver, compiled, for rows as they lie in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantmill.qkernels.lanes.cpu_likelihood_shape import KINDS, LANES
from quantmill.qkernels.lanes.native import Processor, functions


@dataclass(frozen=True)
class Side:
    """Logarithms [n_rows, n_cols]: numbers f32 + shifts f32 [n_rows], or scales f32 [n_rows] · numbers u16 + shifts.

    Rows of numbers may lie apart; each is contiguous.
    """

    numbers: np.ndarray
    shifts: np.ndarray
    scales: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return "f32" if self.scales is None else "u16"

    def values(self) -> np.ndarray:
        """f32 [n_rows, n_cols]."""
        numbers = self.numbers.astype(np.float32)
        if self.scales is not None:
            numbers *= self.scales[:, None]
        numbers += self.shifts[:, None]
        return numbers

    @property
    def addresses(self) -> tuple[int, int, int]:
        scales = self.shifts if self.scales is None else self.scales
        return self.numbers.ctypes.data, scales.ctypes.data, self.shifts.ctypes.data


@functools.cache
def _functions(processor: Processor) -> dict[str, Callable[..., int]]:
    def text() -> str:
        from quantmill.qkernels.lanes.cpu_likelihood_driver import text_of

        return text_of(processor)

    shapes = {"top": (5, 3), "sum": (4, 3), "kld": (7, 4)}
    of_kinds = {f"{name}_{kind}": shape for name, shape in shapes.items() for kind in KINDS}
    return functions("likelihoods", text, of_kinds, processor)


def tops(side: Side, processor: Processor) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each row, f32 [n_rows], and the first column that has it, i64 [n_rows]."""
    n_rows, n_cols = side.numbers.shape
    values, places = np.empty((n_rows, LANES), np.float32), np.empty((n_rows, LANES), np.int32)
    function = _functions(processor)[f"top_{side.kind}"]
    function(*side.addresses, values.ctypes.data, places.ctypes.data, side.numbers.strides[0], n_rows, n_cols)
    best = values.max(axis=1)
    first = np.where(values == best[:, None], places, n_cols).min(axis=1)
    return best, first.astype(np.int64)


def sums(side: Side, processor: Processor) -> np.ndarray:
    """Σ e^value of each row, f64 [n_rows]."""
    n_rows, n_cols = side.numbers.shape
    found = np.empty((n_rows, LANES))
    function = _functions(processor)[f"sum_{side.kind}"]
    function(*side.addresses, found.ctypes.data, side.numbers.strides[0], n_rows, n_cols)
    return found.sum(axis=1)


def divergences(base: Side, other: Side, floor: float, processor: Processor) -> np.ndarray:
    """Σ p (log p - log q) over what has log p > floor, f64 [n_rows]; log p of base, log q of other, which is f32."""
    n_rows, n_cols = base.numbers.shape
    assert other.numbers.shape == base.numbers.shape
    found, floors = np.empty((n_rows, LANES)), np.array([floor], np.float32)
    others, _, other_shifts = other.addresses
    _functions(processor)[f"kld_{base.kind}"](
        *base.addresses,
        others,
        other_shifts,
        floors.ctypes.data,
        found.ctypes.data,
        base.numbers.strides[0],
        other.numbers.strides[0],
        n_rows,
        n_cols,
    )
    return found.sum(axis=1)
