"""Rows and importance that are hard for a quantizer: ties, zeros of both signs, dead groups, extremes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Changes = dict[float, Callable[[np.ndarray], np.ndarray]]


def _normal(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * 0.02


def _heavy_tailed(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(2.5, shape) * 0.01


def _bf16(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Weights of few bits, as models ship them: exact ties and exact zeros."""
    bits = _normal(rng, shape).astype(np.float32).view(np.uint32) & 0xFFFF0000
    rows = bits.astype(np.uint32).view(np.float32)
    return np.where(rng.random(shape) < 0.02, 0, rows)


def _f16(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return _normal(rng, shape).astype(np.float16)


def _coarse(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """A handful of distinct values: ties everywhere."""
    return np.round(rng.standard_normal(shape) * 4) / 64


def _in_groups(rows: np.ndarray, rng: Rng, size: int, choices: Changes) -> np.ndarray:
    """Change a share (the key) of the groups of `size` weights each by the given function."""
    groups = rows.reshape(-1, size).copy()
    draw = rng.random(len(groups))
    low = 0.0
    for share, change in choices.items():
        chosen = (draw >= low) & (draw < low + share)
        groups[chosen] = change(groups[chosen])
        low += share
    return groups.reshape(rows.shape)


def _dead_groups(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Groups and super-blocks of zeros, of negative zeros, of tiny and of sub-normal weights."""
    small: Changes = {
        0.25: np.zeros_like,
        0.10: lambda x: x * 1e-14,
        0.07: lambda x: x * 1e-30,
        0.03: lambda x: x * 1e-39,
        0.05: lambda x: np.full_like(x, -0.0),
    }
    rows = _in_groups(_normal(rng, shape), rng, 16, small)
    return _in_groups(rows, rng, _super_block(shape), {0.2: np.zeros_like, 0.05: lambda x: x * 1e-9})


def _dead_sub_blocks(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return _in_groups(rng.standard_normal(shape), rng, 32, {0.3: np.zeros_like})


def _dead_super_blocks(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return _in_groups(rng.standard_normal(shape), rng, _super_block(shape), {0.3: np.zeros_like})


def _super_block(shape: tuple[int, int]) -> int:
    return 256 if shape[1] % 256 == 0 else 32


def _one_sided(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Groups all positive, all negative or constant."""
    sides: Changes = {
        0.4: np.negative,
        0.1: lambda x: np.full_like(x, 0.0123),
        0.09: lambda x: np.full_like(x, -0.0321),
    }
    return _in_groups(np.abs(_normal(rng, shape)), rng, 16, sides)


def _outliers(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return _normal(rng, shape) * np.where(rng.random(shape) < 0.01, 100, 1)


def _wide_range(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * np.exp(rng.uniform(-14, 7, shape))


def _exact_ties(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Halves under a largest magnitude of 8, 16 or 127 in every 32: products end exactly between codes."""
    groups = rng.integers(-15, 16, shape).reshape(-1, 32) / 2.0
    top = rng.choice([8.0, 16.0, 127.0], len(groups)) * rng.choice([-1, 1], len(groups))
    groups[np.arange(len(groups)), rng.integers(0, 32, len(groups))] = top
    return groups.reshape(shape)


def _scaled(factor: float) -> Callable[[Rng, tuple[int, int]], np.ndarray]:
    return lambda rng, shape: rng.standard_normal(shape) * factor


ROWS: dict[str, Callable[[Rng, tuple[int, int]], np.ndarray]] = {
    "normal": _normal,
    "heavy-tailed": _heavy_tailed,
    "bf16": _bf16,
    "f16": _f16,
    "coarse": _coarse,
    "dead groups": _dead_groups,
    "dead sub-blocks": _dead_sub_blocks,
    "dead super-blocks": _dead_super_blocks,
    "one-sided": _one_sided,
    "positive": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)) - 1,
    "constant": lambda rng, shape: np.ones(shape),
    "constant negative": lambda rng, shape: -np.ones(shape),
    "sparse": lambda rng, shape: np.where(rng.random(shape) < 0.03, rng.standard_normal(shape), 0),
    "outliers": _outliers,
    "wide range": _wide_range,
    "exact ties": _exact_ties,
    "integers": lambda rng, shape: np.rint(rng.standard_normal(shape) * 3),
    "3e3": _scaled(3e3),
    "1e5": _scaled(1e5),
    "1e-12": _scaled(1e-12),
    "1e-18": _scaled(1e-18),
    "1e-38": _scaled(1e-38),
}

IMPORTANCE: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "cubed": lambda rng, n: rng.random(n) ** 3 * 5 + 1e-4,
    "heavy-tailed": lambda rng, n: np.exp(rng.standard_normal(n) * 2),
    "ones": lambda rng, n: np.ones(n),
    "zeros": lambda rng, n: _with_zeros(rng, n),
    "half zeros": lambda rng, n: np.where(rng.random(n) < 0.5, 0, rng.random(n)),
    "mostly zero": lambda rng, n: (np.arange(n) % 37 == 0).astype(float),
    "all zero": lambda rng, n: np.zeros(n),
    "integers": lambda rng, n: np.rint(rng.random(n) * 3),
    "1e-20": lambda rng, n: rng.random(n) * 1e-20,
    "1e10": lambda rng, n: rng.random(n) * 1e10,
}

# Kinds that between them reach every branch of the searches, for engines that can afford only a few blocks.
HARD_ROWS = ("heavy-tailed", "coarse", "dead groups", "one-sided", "exact ties", "wide range")


def _with_zeros(rng: Rng, n: int) -> np.ndarray:
    weights = np.where(rng.random(n) < 0.2, 0, rng.random(n))
    weights.reshape(-1, 32)[::5] = 0
    return weights


def rows(kind: str, n_rows: int, n_cols: int, seed: int = 0) -> np.ndarray:
    """[n_rows, n_cols] f32; n_cols a multiple of 32. The same arguments give the same rows."""
    with np.errstate(under="ignore"):
        made = ROWS[kind](np.random.default_rng([seed, 1]), (n_rows, n_cols))
        return np.ascontiguousarray(made, np.float32)


def importance(kind: str, n_cols: int, seed: int = 0) -> np.ndarray:
    """[n_cols] f32, not negative; n_cols a multiple of 32."""
    return IMPORTANCE[kind](np.random.default_rng([seed, 2]), n_cols).astype(np.float32)
