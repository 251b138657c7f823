"""IQ2, IQ3 and IQ4 on the CPU against llama.cpp, on data made for what is special in them."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill import qkernels
from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.encoders import encoder_of, encoders
from quantmill.qkernels.lanes import cpu
from quantmill.qkernels.lanes.cpu_search import MAX_RUNS, RUN
from quantmill.qkernels.lanes.native import host
from tests.support import data_kinds, oracle

GRIDS = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
VALUES = ["IQ4_NL", "IQ4_XS"]


def ways(types: list[str]) -> list[tuple[str, bool]]:
    return [(type, weighted) for type, weighted in encoders() if type in types]


def check(rows: np.ndarray, type: str, importance: np.ndarray | None) -> None:
    rows = np.ascontiguousarray(rows, np.float32)
    actual = qkernels.quantize(rows, type, importance, threads=1)
    difference = oracle.first_difference(actual, oracle.quantize(rows, type, importance), type)
    assert not difference, difference


@pytest.mark.parametrize(("type", "weighted"), ways(VALUES))
def test_middles_between_two_values(type: str, weighted: bool) -> None:
    """Products that end exactly in the middle of two values of the codebook, and one float to either side of it."""
    values = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    near = [middles, np.nextafter(middles, np.float32(200)), np.nextafter(middles, np.float32(-200))]
    rng = np.random.default_rng(3)
    rows = rng.choice(np.concatenate([*near, values]), (64, 1024)).astype(np.float32)
    # the largest magnitude of every 32 is -127: the first trial's scale is then exactly 1
    rows.reshape(-1, 32)[:, 0] = -127
    rows *= np.exp2(rng.integers(-20, 10, (64, 1))).astype(np.float32)
    check(rows, type, data_kinds.importance("ones", 1024) if weighted else None)


@pytest.mark.parametrize("type", GRIDS)
def test_no_list_of_neighbours_is_longer_than_the_search_expects(type: str) -> None:
    longest = np.diff(codebook(type).start).max()
    assert longest <= RUN * MAX_RUNS


@pytest.mark.parametrize("noise", [0, 1e-7, 1e-5])
@pytest.mark.parametrize(("type", "weighted"), ways(GRIDS))
def test_weights_between_points_of_the_grid(type: str, weighted: bool, noise: float) -> None:
    """Neighbours equally far or almost so: a remembered neighbour must not outlive the rounding of its distance."""
    rng = np.random.default_rng(5)
    # odd numbers are the grid's own points, even ones lie in the middle of two
    rows = rng.integers(0, 17, (16, 4096)) * rng.choice([-1.0, 1.0], (16, 4096))
    rows *= 1 + noise * rng.standard_normal(rows.shape)
    rows *= np.exp2(rng.integers(-12, 2, (16, 1)))
    importance = rng.integers(1, 3, 4096).astype(np.float32) if weighted else None
    check(rows, type, importance)


# at 1e15 llama.cpp aborts, because no neighbour has a finite distance
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
@pytest.mark.parametrize(("type", "weighted"), ways(GRIDS))
def test_weights_so_small_or_large_that_distances_leave_the_range(
    type: str, weighted: bool, scale: float
) -> None:
    rows = (data_kinds.rows("heavy-tailed", 4, 2048).astype(np.float64) * scale).astype(np.float32)
    importance = data_kinds.importance("heavy-tailed", 2048) if weighted else None
    expected = oracle.quantize(rows, type, importance)
    actual, _ = cpu.encode(qkernels.TYPES[type], encoder_of(type, weighted), rows, importance, 1, host())
    difference = oracle.first_difference(actual, expected, type)
    assert not difference, difference
