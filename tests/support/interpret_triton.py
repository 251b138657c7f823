"""Encode stored rows with Triton kernels in the interpreter: python interpret_triton.py ROWS RESULTS CASES SEARCH."""

import json
import sys
import time
import warnings

import numpy as np
import torch

from quantmill.qkernels.encoders import encoder_of
from quantmill.qkernels.lanes import triton
from quantmill.qkernels.types import TYPES, Search, get_search


def main(rows_path: str, results_path: str, cases: list[tuple[str, bool]], search: Search) -> None:
    if not triton.INTERPRETED:
        sys.exit("TRITON_INTERPRET=1 must be set")
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN and 255: what no kernel wrote shows
    with np.load(rows_path) as stored:
        rows, importance = torch.from_numpy(stored["rows"]), torch.from_numpy(stored["importance"])
    results: dict[str, np.ndarray] = {}
    for type, weighted in cases:
        start = time.perf_counter()
        weights = importance if weighted else None
        blocks = triton.encode(TYPES[type], encoder_of(type, weighted, search), rows, weights)
        results[f"{type}-{'weighted' if weighted else 'plain'}"] = blocks.numpy()
        sys.stderr.write(f"{type} {weighted} {time.perf_counter() - start:.1f} s\n")
    np.savez(results_path, **results)  # type: ignore[arg-type]


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # lanes that nobody reads overflow and divide by zero, as they may
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), get_search(sys.argv[4]))
