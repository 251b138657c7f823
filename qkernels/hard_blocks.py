"""Rows that are hard for a search, the same on every machine: what a device is asked when it first meets a type."""

from __future__ import annotations

import numpy as np

N_COLS = 1024
_ROWS_OF_A_KIND = 64


def hard_rows() -> np.ndarray:
    """f32 [512, 1024]: ties, dead, one-sided and tiny groups, zeros of both signs, outliers, few distinct values, many
    magnitudes."""
    rng = np.random.default_rng(17)
    shape = (_ROWS_OF_A_KIND, N_COLS)
    normal = rng.standard_normal(shape) * 0.02
    groups = rng.standard_normal(shape).reshape(-1, 16)
    groups[rng.random(len(groups)) < 0.3] = 0
    tiny = groups[
        -16 * N_COLS // 16 :
    ]  # of the last rows, that others can be done by GPUs that know no such numbers
    tiny *= rng.choice([1, -0.0, 1e-14, 1e-30, 1e-39], (len(tiny), 1))
    halves = rng.integers(-15, 16, shape).reshape(-1, 32) / 2.0
    halves[:, 0] = rng.choice([8.0, -16.0, 127.0], len(halves))
    kinds = (
        normal,
        rng.standard_t(2.5, shape) * 0.01,
        np.round(rng.standard_normal(shape) * 4) / 64,
        groups.reshape(shape),
        np.abs(normal) * np.where(rng.random((_ROWS_OF_A_KIND, 1)) < 0.5, 1, -1),
        normal * np.where(rng.random(shape) < 0.01, 100, 1),
        halves.reshape(shape),
        rng.standard_normal(shape) * np.exp(rng.uniform(-9, 3, shape)),
    )
    return np.concatenate(kinds).astype(np.float32)


def hard_importance() -> np.ndarray:
    """f32 [1024]: of many magnitudes, some zero, a group of zeros."""
    rng = np.random.default_rng(18)
    importance = np.exp(rng.standard_normal(N_COLS) * 2)
    importance[rng.random(N_COLS) < 0.1] = 0
    importance[64:96] = 0
    return importance.astype(np.float32)
