"""Decode blocks with Triton kernels in the interpreter: python interpret_triton_decoders.py BLOCKS RESULTS."""

import sys
import warnings

import numpy as np
import torch

from quantmill.qkernels.decoders import decoders
from quantmill.qkernels.lanes import triton, triton_decode
from quantmill.qkernels.types import readable_type


def main(blocks_path: str, results_path: str) -> None:
    if not triton.INTERPRETED:
        sys.exit("TRITON_INTERPRET=1 must be set")
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN: what no kernel wrote shows
    results: dict[str, np.ndarray] = {}
    with np.load(blocks_path) as stored:
        for name, blocks in stored.items():
            type = readable_type(name)
            for to in ("float32", "float16"):
                out = torch.empty((len(blocks), type.block), dtype=getattr(torch, to))
                triton_decode.decode(type, decoders()[name], torch.from_numpy(blocks), out)
                results[f"{name}-{to}"] = out.numpy()
    np.savez(results_path, **results)  # type: ignore[arg-type]


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # random scales overflow halves, as they may
    main(sys.argv[1], sys.argv[2])
