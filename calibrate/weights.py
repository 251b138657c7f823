"""The weights of one tensor in another type: all its rows, and the error of a sample of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantmill.calibrate.errors import naming
from quantmill.gguf_io import TensorSource, TensorSpec
from quantmill.qkernels import to_float32
from quantmill.qkernels.rows import RowQuantizer

SAMPLED_WEIGHTS = 1 << 18  # of a tensor, for its errors: enough for a percent, whatever its size
SAMPLED_MATRICES = 8  # of a stack of experts


@dataclass(frozen=True)
class Subject:
    """A tensor whose types are weighed. importance: [n_matrices, n_cols] f32 or None."""

    spec: TensorSpec
    importance: np.ndarray | None

    @property
    def n_matrices(self) -> int:
        return math.prod(self.spec.shape[2:])


def quantized(source: TensorSource, subject: Subject, type: str, quantizer: RowQuantizer) -> np.ndarray:
    """All rows of a tensor, u8 [n_rows, row_bytes], in `type`, as a run of quantize writes them."""
    spec = subject.spec
    if type == spec.type:
        return source.read(spec.name)
    n_rows = spec.n_rows // subject.n_matrices
    parts = []
    for m in range(subject.n_matrices):
        loaded = quantizer.load(source.read(spec.name, m * n_rows, n_rows), spec.type)
        with naming(spec.name):
            parts.append(quantizer.quantize(loaded, spec.type, type, _of_matrix(subject, m)))
    quantizer.finish()
    return np.concatenate(parts)


def sampled_errors(
    source: TensorSource, subject: Subject, types: Sequence[str], quantizer: RowQuantizer
) -> dict[str, float]:
    """type → Σ h·(w − q)² / Σ h·w² over rows spread evenly, h the importance of the columns (1 without).

    With h the second moment of the inputs this is the share of the tensor's output that is lost, inputs taken for
    uncorrelated.
    """
    spec, n_matrices = subject.spec, subject.n_matrices
    chosen = _spread(n_matrices, SAMPLED_MATRICES)
    n_rows = spec.n_rows // n_matrices
    rows = _spread(n_rows, max(1, SAMPLED_WEIGHTS // (spec.n_cols * len(chosen))))
    lost, whole = dict.fromkeys(types, 0.0), 0.0
    for m in chosen:
        raw = np.ascontiguousarray(source.read(spec.name, int(m) * n_rows, n_rows)[rows])
        weights = to_float32(raw, spec.type)
        importance = _of_matrix(subject, int(m))
        h = np.ones(spec.n_cols, np.float32) if importance is None else importance
        whole += float(((weights * weights) @ h).sum(dtype=np.float64))
        for type in types:
            if type == spec.type:
                continue
            loaded = quantizer.load(raw, spec.type)
            with naming(spec.name):
                blocks = quantizer.quantize(loaded, spec.type, type, importance)
            difference = weights - to_float32(blocks, type)
            lost[type] += float(((difference * difference) @ h).sum(dtype=np.float64))
    quantizer.finish()
    return {type: error / whole if whole else 0.0 for type, error in lost.items()}


def _of_matrix(subject: Subject, m: int) -> np.ndarray | None:
    return None if subject.importance is None else subject.importance[m]


def _spread(n: int, at_most: int) -> np.ndarray:
    """At most so many of 0 … n − 1, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).astype(np.int64))
