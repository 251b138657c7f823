"""What a search moves and waits for, whatever kind of GPU runs it: for the models of how fast that can be."""

from __future__ import annotations

import numpy as np

from quantmill.qkernels.codebooks import codebook
from quantmill.qkernels.lanes.encoder import Encoder

# Share of groups of Gaussian weights whose nearest code is off the grid (measured with the reference's searches).
_OFF_GRID = {
    "IQ2_XXS": 0.45,
    "IQ2_XS": 0.66,
    "IQ2_S": 0.58,
    "IQ3_XXS": 0.81,
    "IQ3_S": 0.72,
    "IQ1_S": 0.54,
    "IQ1_M": 0.54,
}
_ITEM = {"f32": 4, "i32": 4, "u8": 1}


def longest_walk(type: str) -> float:
    """Rounds of a walk along neighbours that 32 threads wait for."""
    lengths = np.diff(codebook(type).start)
    lengths = lengths[lengths > 0]
    walkers = max(1, round(32 * _OFF_GRID[type]))
    draws = np.random.default_rng(0).choice(lengths, (4096, walkers))
    return float(draws.max(1).mean())


def bytes_moved(encoder: Encoder, block: int, n_bytes: int) -> float:
    """Bytes a weight: each phase's arrays once, the rows and blocks in and out of their transposed form."""
    sizes = {name: count * _ITEM[kind] for name, (count, kind) in encoder.scratch.items()}
    sizes |= {"x": 4 * block, "out": n_bytes, "importance": 0, "row_sigma": 0}
    total = 2 * 4 * block + 2 * n_bytes
    for phase in encoder.phases:
        total += sum(sizes.get(a, 0) for a in {a for a in phase.arguments if isinstance(a, str)})
    return total / block
