"""`search="thorough"`: no block worse than llama.cpp's under Σ importance·(row - decoded)², on every engine alike."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill import qkernels
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.types import TYPES, TooLargeError
from tests.support import data_kinds, oracle

CASES = sorted(encoders("thorough"))
_COLUMNS = 768


def case_id(case: tuple[str, bool]) -> str:
    return f"{case[0]}-{'weighted' if case[1] else 'plain'}"


def errors(rows: np.ndarray, blocks: np.ndarray, type: str, importance: np.ndarray | None) -> np.ndarray:
    """Σ importance·(row - decoded)² of each block, decoded by llama.cpp, in float64."""
    weights = 1.0 if importance is None else importance.astype(np.float64)
    lost = weights * (oracle.dequantize(blocks, type).astype(np.float64) - rows) ** 2
    return lost.reshape(-1, TYPES[type].block).sum(1)


def test_the_rows_of_types_say_which_searches_there_are():
    for name, row in TYPES.items():
        for weighted in (False, True):
            assert row.is_searched_thoroughly(weighted) == ((name, weighted) in CASES), (name, weighted)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_no_block_is_worse(case):
    """All kinds of rows, each with two kinds of importance in turn; what float32 cannot tell apart is allowed."""
    type, weighted = case
    kinds = list(data_kinds.IMPORTANCE) if weighted else [None]
    for i, rows_kind in enumerate(data_kinds.ROWS):
        rows = data_kinds.rows(rows_kind, 20, _COLUMNS, seed=i)
        for kind in (kinds[i % len(kinds)], kinds[(i + 3) % len(kinds)]):
            importance = None if kind is None else data_kinds.importance(kind, _COLUMNS, seed=i)
            try:
                start = qkernels.quantize(rows, type, importance)
            except TooLargeError:
                continue
            plain = errors(rows, start, type, importance)
            found = errors(
                rows, qkernels.quantize(rows, type, importance, search="thorough"), type, importance
            )
            worse = found > plain * (1 + 1e-5)
            assert not worse.any(), (rows_kind, kind, plain[worse], found[worse])


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_torch_gives_the_same_bytes(case):
    type, weighted = case
    rows = np.concatenate([data_kinds.rows(kind, 1, 512) for kind in data_kinds.HARD_ROWS])
    importance = data_kinds.importance("zeros", 512) if weighted else None
    expected = qkernels.quantize(rows, type, importance, search="thorough")
    found = qkernels.quantize(rows, type, importance, engine="torch", search="thorough")
    assert not oracle.first_difference(found, expected, type)
