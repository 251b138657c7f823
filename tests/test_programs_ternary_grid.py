"""IQ1_S and IQ1_M where their own search is delicate, byte for byte as llama.cpp.

test_programs_cpu.py compares them on the hard kinds of data. Here: equal weights, whose order the sort must keep;
splits that score alike, of which the first in the reference's order wins; products at the edges of floats, where the
search may not start from an estimate.
"""

from __future__ import annotations

import numpy as np
import pytest

from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.lanes import cpu
from quantmill.qkernels.lanes.native import host
from quantmill.qkernels.types import TYPES
from tests.support import oracle

IQ1 = ("IQ1_S", "IQ1_M")
SLOW = pytest.param(400, marks=pytest.mark.slow)
COLUMNS = 1024


def assert_same_blocks(rows: np.ndarray, importance: np.ndarray, type: str) -> None:
    rows, importance = rows.astype(np.float32), importance.astype(np.float32)
    ours, _ = cpu.encode(TYPES[type], encoder_of(type, True), rows, importance, 1, host())
    difference = oracle.first_difference(ours, oracle.quantize(rows, type, importance), type)
    assert not difference, difference


@pytest.mark.parametrize("n_rows", [20, SLOW])
@pytest.mark.parametrize("levels", [(-1, 1), (-2, 2), (-3, 3), (0, 2), (-4, 0)], ids=str)
@pytest.mark.parametrize("type", IQ1)
def test_few_levels(type: str, levels: tuple[int, int], n_rows: int) -> None:
    """Small integers under small integer importance: equal weights and splits that score alike, everywhere."""
    rng = np.random.default_rng(n_rows)
    rows = rng.integers(levels[0], levels[1] + 1, (n_rows, COLUMNS))
    assert_same_blocks(rows, rng.integers(0, 4, COLUMNS), type)
    assert_same_blocks(rows * np.float32(0.1), np.ones(COLUMNS), type)


@pytest.mark.parametrize("n_rows", [20, SLOW])
@pytest.mark.parametrize("type", IQ1)
def test_zeros_of_both_signs_are_equal_in_the_sort(type: str, n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    rows = rng.choice(np.array([-1, -0.0, 0.0, 1], np.float32), (n_rows, COLUMNS), p=[0.15, 0.35, 0.35, 0.15])
    assert_same_blocks(rows, rng.random(COLUMNS), type)


@pytest.mark.parametrize("n_rows", [4, SLOW])
@pytest.mark.parametrize("importance_exponent", [-38, -30, -20, -12, 0, 10, 18])
@pytest.mark.parametrize("type", IQ1)
def test_products_at_the_edges_of_floats(type: str, importance_exponent: int, n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    importance = rng.random(COLUMNS) * 10.0**importance_exponent
    for exponent in (-36, -24, -16, -11, -6, 0, 8, 15):
        # beyond this llama.cpp stops: its sums are infinite
        if 2 * exponent + importance_exponent <= 34:
            assert_same_blocks(rng.standard_normal((n_rows, COLUMNS)) * 10.0**exponent, importance, type)


@pytest.mark.parametrize("n_rows", [20, SLOW])
@pytest.mark.parametrize("decades", [(-12, 6), (-36, 3)], ids=str)
@pytest.mark.parametrize("type", IQ1)
def test_wide_ranges_within_sub_blocks(type: str, decades: tuple[int, int], n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    rows = rng.standard_normal((n_rows, COLUMNS)) * 10.0 ** rng.uniform(*decades, (n_rows, COLUMNS))
    assert_same_blocks(rows, 10.0 ** rng.uniform(*decades, COLUMNS), type)
