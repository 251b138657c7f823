"""The CPU engine against llama.cpp's own quantizer, byte for byte, on data that is hard for a quantizer."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill import qkernels
from quantmill.qkernels.encoders import encoder_of, encoders
from quantmill.qkernels.lanes import cpu
from quantmill.qkernels.lanes.native import host
from tests.support import data_kinds, oracle

CASES = sorted(encoders())


def differing_blocks(ours: np.ndarray, theirs: np.ndarray, type: str) -> int:
    size = qkernels.TYPES[type].bytes
    return int((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1).sum())


def compare(type: str, weighted: bool, n_rows: int, n_cols: int) -> None:
    """Every kind of rows with every kind of importance."""
    wrong = {}
    for i, kind in enumerate(data_kinds.ROWS):
        rows = data_kinds.rows(kind, n_rows, n_cols, seed=i)
        for importance_kind in data_kinds.IMPORTANCE if weighted else [None]:
            importance = None
            if importance_kind is not None:
                importance = data_kinds.importance(importance_kind, n_cols, seed=i)
            # the engine itself: quantize() refuses rows whose scales overflow, the oracle's chunk function does not
            ours, _ = cpu.encode(
                qkernels.TYPES[type], encoder_of(type, weighted), rows, importance, 1, host()
            )
            bad = differing_blocks(ours, oracle.quantize(rows, type, importance), type)
            if bad:
                wrong[kind, importance_kind] = bad
    assert not wrong, f"{type}: differing blocks by kind of rows and importance: {wrong}"


@pytest.mark.parametrize(
    ("type", "weighted"), CASES, ids=lambda v: {True: "importance", False: "plain"}.get(v, v)
)
def test_bytes_are_llama_cpps(type: str, weighted: bool) -> None:
    # 19 rows of 3 super-blocks: tiles that are not full, blocks of several rows in one tile
    compare(type, weighted, 19, 768)


@pytest.mark.parametrize(
    ("type", "weighted"), CASES, ids=lambda v: {True: "importance", False: "plain"}.get(v, v)
)
def test_scales_that_are_not_finite_are_seen(type: str, weighted: bool) -> None:
    """In any lane of any tile; they are where ggml decodes blocks to numbers that are not."""
    rows = data_kinds.rows("normal", 70, 768)
    importance = data_kinds.importance("cubed", 768) if weighted else None
    seen = set()
    for row, block, size in ((0, 0, 1.0), (0, 0, 1e9), (37, 1, 1e9), (69, 2, 1e10), (69, 2, 1e20)):
        large = rows.copy()
        large[row, 256 * block : 256 * block + 256] *= np.float32(size)
        given = large, importance, 2, host()
        found, finite = cpu.encode(qkernels.TYPES[type], encoder_of(type, weighted), *given)
        assert finite == np.isfinite(oracle.dequantize(found, type)).all()
        seen.add(finite)
    holds_them = type in ("MXFP4", "NVFP4")  # powers of two; eight bits that are all numbers
    assert seen == ({True} if holds_them else {True, False})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type", "weighted"), CASES, ids=lambda v: {True: "importance", False: "plain"}.get(v, v)
)
def test_bytes_are_llama_cpps_on_2000_blocks_a_kind(type: str, weighted: bool) -> None:
    compare(type, weighted, 256, 2304)


@pytest.mark.parametrize("type", ["Q4_0", "Q5_1", "Q8_0", "Q6_K", "Q2_K"])
def test_threads_and_slabs_do_not_change_bytes(type: str) -> None:
    rows = data_kinds.rows("heavy-tailed", 700, 4096)
    importance = data_kinds.importance("cubed", 4096)
    whole = qkernels.quantize(rows, type, importance, threads=1)
    assert np.array_equal(whole, qkernels.quantize(rows, type, importance, threads=3))
    slabs = [qkernels.quantize(rows[a : a + 99], type, importance, threads=2) for a in range(0, 700, 99)]
    assert np.array_equal(whole, np.concatenate(slabs))


@pytest.mark.parametrize("type", ["Q4_K", "Q4_0"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [0, 1, 31, 33])
def test_few_rows(type: str, weighted: bool, n_rows: int) -> None:
    rows = data_kinds.rows("heavy-tailed", 64, 512)[:n_rows]
    importance = data_kinds.importance("cubed", 512) if weighted else None
    found = qkernels.quantize(rows, type, importance)
    assert found.shape == (n_rows, qkernels.TYPES[type].row_bytes(512))
    if n_rows:
        assert np.array_equal(found, oracle.quantize(rows, type, importance))
