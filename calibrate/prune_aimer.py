"""What experts are worth by their weights alone (AIMER, arXiv 2603.18492): no text, and no torch, which may be missing.

Mean |w| over the root of the mean w² of an expert's weights, the larger the less it is missed.
"""

from __future__ import annotations

import re

import numpy as np

from quantmill.gguf_io import TensorSource
from quantmill.qkernels import to_float32

_STACK = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight")


def aimer(source: TensorSource, n_experts: int) -> dict[int, np.ndarray]:
    """Layer → mean |w| / √(mean w²) of each expert's weights [n_experts] f64, all its matrices together."""
    sums: dict[int, np.ndarray] = {}
    for spec in source.specs():
        match = _STACK.fullmatch(spec.name)
        if match is None:
            continue
        each = spec.n_rows // n_experts
        found = sums.setdefault(int(match[1]), np.zeros((3, n_experts)))
        for expert in range(n_experts):
            rows, type = source.fetch(spec.name, expert * each, each)
            weights = to_float32(np.ascontiguousarray(rows), type)
            found[0, expert] += np.abs(weights).sum(dtype=np.float64)
            found[1, expert] += np.square(weights).sum(dtype=np.float64)
            found[2, expert] += weights.size
        source.release(spec.name)
    return {
        layer: (absolute / n) / np.sqrt(np.maximum(square / n, np.finfo(np.float64).tiny))
        for layer, (absolute, square, n) in sums.items()
    }
