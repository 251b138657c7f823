"""Blocks of columns by Triton kernels in the interpreter: python -m tests.support.interpret_columns GIVEN RESULTS.

GIVEN: [(type, work of columns.py, numbers of rows), …]. Each is gone through block by block, with programs of so
many rows.
"""

import sys
import warnings

import torch

from quantmill.calibrate import column_kernels
from quantmill.qkernels.lanes.triton import INTERPRETED
from tests.support.column_blocks import gone_through


def main(given: str, results: str) -> None:
    if not INTERPRETED:
        sys.exit("TRITON_INTERPRET=1 must be set")
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN: what no kernel wrote shows
    made = [
        [gone_through(column_kernels, type, work, rows=rows) for rows in tiles]
        for type, work, tiles in torch.load(given, weights_only=False)
    ]
    torch.save(made, results)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(sys.argv[1], sys.argv[2])
