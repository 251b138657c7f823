"""MXFP4, NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0 at the edges of floats, byte for byte as llama.cpp.

test_programs_cpu.py compares every type on the hard kinds of data; here are the ones that only these types mind:
largest weights next to powers of two, sub-normal blocks, products that end exactly between codes, huge ranges.
"""

from __future__ import annotations

import numpy as np
import pytest

from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.lanes import cpu
from quantmill.qkernels.lanes.native import host
from quantmill.qkernels.types import TYPES
from tests.support import oracle

SMALL_TYPES = ("MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")


def assert_same_blocks(rows: np.ndarray, type: str) -> None:
    # the engine itself: quantize() refuses rows whose scales overflow, the oracle's chunk function does not
    ours, _ = cpu.encode(TYPES[type], encoder_of(type, False), rows, None, 1, host())
    difference = oracle.first_difference(ours, oracle.quantize(rows, type), type)
    assert not difference, difference


def largest_weights(around: int) -> np.ndarray:
    """Every power of two a float can be, `around` units of the last place to both sides, sub-normal ones included."""
    normal = (np.arange(1, 255, dtype=np.int64) << 23)[:, None] + np.arange(-around, around + 1)
    small = (1 << np.arange(23, dtype=np.int64))[:, None] + np.arange(-4, 5)
    patterns = np.unique(np.concatenate([normal.ravel(), small.ravel()]))
    return patterns[patterns > 0].astype(np.int32).view(np.float32)


@pytest.mark.parametrize("type", SMALL_TYPES)
@pytest.mark.parametrize("around", [8, pytest.param(128, marks=pytest.mark.slow)])
def test_largest_weights_next_to_powers_of_two(type: str, around: int) -> None:
    rng = np.random.default_rng(around)
    largest = largest_weights(around) * rng.choice(
        np.array([-1, 1], np.float32), len(largest_weights(around))
    )
    block = TYPES[type].block
    with np.errstate(under="ignore"):
        rows = rng.uniform(-1, 1, (len(largest), block)).astype(np.float32) * largest[:, None]
    rows[np.arange(len(rows)), rng.integers(0, block, len(rows))] = largest
    assert_same_blocks(rows, type)


@pytest.mark.parametrize("type", SMALL_TYPES)
@pytest.mark.parametrize("n_blocks", [500, pytest.param(20000, marks=pytest.mark.slow)])
def test_products_between_codes(type: str, n_blocks: int) -> None:
    """Sixteenths of a power of two: every midpoint of E2M1, halves of the largest weight, zeros of both signs."""
    rng = np.random.default_rng(n_blocks)
    shape = (n_blocks, TYPES[type].block)
    sixteenths = rng.integers(-16, 17, shape).astype(np.float32) / 16
    sixteenths = np.where((sixteenths == 0) & (rng.random(shape) < 0.5), np.float32(-0.0), sixteenths)
    rows = sixteenths * np.exp2(rng.integers(-140, 126, (n_blocks, 1))).astype(np.float32)
    assert_same_blocks(rows, type)


@pytest.mark.parametrize("type", SMALL_TYPES)
@pytest.mark.parametrize("n_blocks", [500, pytest.param(20000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spread", ["between blocks", "within blocks"])
def test_all_magnitudes_of_floats(type: str, n_blocks: int, spread: str) -> None:
    rng = np.random.default_rng(n_blocks)
    shape = (n_blocks, TYPES[type].block)
    exponents = rng.uniform(-150, 125, (n_blocks, 1) if spread == "between blocks" else shape)
    with np.errstate(under="ignore"):
        rows = (rng.standard_normal(shape) * np.exp2(exponents)).astype(np.float32)
    assert_same_blocks(rows, type)


@pytest.mark.parametrize("type", SMALL_TYPES)
def test_zeros_of_both_signs(type: str) -> None:
    zeros = np.zeros((64, TYPES[type].block), np.float32)
    zeros[::2, ::3] = -0.0
    assert_same_blocks(zeros, type)
