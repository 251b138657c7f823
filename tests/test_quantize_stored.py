"""Rows as models store them, quantized, or quantized once more, without being made float32 first."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill import qkernels
from quantmill.qkernels.cpu_engine import quantize_stored
from tests.support import data_kinds, oracle

STORED = ["F32", "F16", "BF16"]


def every_half() -> np.ndarray:
    """All finite halves, sub-normal ones and both zeros included, as u8 [n_rows, row_bytes]."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    return halves[halves & 0x7C00 != 0x7C00].reshape(-1, 512).view(np.uint8)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("type", ["Q8_0", "Q5_1", "Q6_K", "Q4_K", "IQ3_S", "F16", "BF16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_are_those_of_the_widened_rows(stored: str, type: str, weighted: bool) -> None:
    rows = np.concatenate([data_kinds.rows(kind, 7, 512) for kind in data_kinds.HARD_ROWS])
    rows = rows[(np.abs(rows) < 6e4).all(1)]
    raw = qkernels.quantize(rows, stored)
    importance = data_kinds.importance("cubed", 512) if weighted else None
    found = quantize_stored(raw, stored, type, importance, threads=2)
    widened = {"F32": raw.view("<f4"), "F16": raw.view("<f2").astype(np.float32)}.get(stored)
    if widened is None:
        widened = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if qkernels.TYPES[type].family == "plain":
        assert np.array_equal(found, qkernels.quantize(widened, type))
    else:
        assert not oracle.first_difference(found, oracle.quantize(widened, type, importance), type)


@pytest.mark.parametrize(
    ("source", "type"),
    [
        ("Q4_K", "Q8_0"),
        ("Q8_0", "Q4_K"),
        ("Q4_K", "Q4_0"),
        ("MXFP4", "Q4_K"),
        ("Q1_0", "NVFP4"),
        ("IQ3_S", "Q5_1"),
        ("Q5_0", "IQ2_S"),
        ("Q6_K", "F16"),
        ("Q6_K", "BF16"),
        ("TQ2_0", "F32"),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [0, 1, 33, 300])
def test_blocks_become_other_blocks(source: str, type: str, weighted: bool, n_rows: int) -> None:
    """The oracle's quantizer on the oracle's numbers; few rows, rows that fill no tile, several pieces."""
    raw = oracle.quantize(data_kinds.rows("heavy-tailed", 300, 768), source)[:n_rows]
    importance = data_kinds.importance("cubed", 768) if weighted else None
    found = quantize_stored(raw, source, type, importance, threads=2)
    assert found.shape == (n_rows, qkernels.TYPES[type].row_bytes(768))
    if not n_rows:
        return
    numbers = oracle.dequantize(raw, source)
    if qkernels.TYPES[type].family == "plain":
        assert np.array_equal(found, qkernels.quantize(numbers, type))
    else:
        assert not oracle.first_difference(found, oracle.quantize(numbers, type, importance), type)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "F16", "F32"])
@pytest.mark.parametrize(("half", "value"), [(0x7C00, "inf"), (0x7E00, "nan")])
def test_blocks_that_are_not_finite_are_named(type: str, half: int, value: str) -> None:
    raw = oracle.quantize(np.ones((70, 512), np.float32), "Q8_0").reshape(70, 16, 34)
    raw[41, 3, :2] = half & 255, half >> 8
    with pytest.raises(qkernels.QuantizeError, match=rf"{value} in row 41, column 96"):
        quantize_stored(raw.reshape(70, -1), "Q8_0", type, None)


def test_every_half_is_widened_exactly() -> None:
    raw = every_half()
    found = quantize_stored(raw, "F16", "Q8_0", None)
    expected = oracle.quantize(raw.view("<f2").astype(np.float32), "Q8_0")
    assert not oracle.first_difference(found, expected, "Q8_0")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_rows", [3, 70])
def test_weights_that_are_not_finite_are_named(stored: str, value: float, n_rows: int) -> None:
    rows = data_kinds.rows("normal", n_rows, 512)
    raw = qkernels.quantize(rows, stored)
    one = np.full((1, 1), value, np.float32)
    words = {"F32": one, "F16": one.astype("<f2"), "BF16": (one.view(np.uint32) >> 16).astype("<u2")}[stored]
    raw.view(words.dtype)[2, 7] = words[0, 0]
    with pytest.raises(qkernels.QuantizeError, match=rf"{value} in row 2, column 7"):
        quantize_stored(raw, stored, "Q4_K", np.ones(512, np.float32))


def test_refuses_what_quantize_refuses() -> None:
    raw = qkernels.quantize(data_kinds.rows("normal", 2, 288), "F16")
    with pytest.raises(qkernels.QuantizeError, match="288 columns, Q4_K needs a multiple of 256"):
        quantize_stored(raw, "F16", "Q4_K", None)
    with pytest.raises(
        qkernels.QuantizeError, match=r"importance has shape \[256\], the rows have 288 columns"
    ):
        quantize_stored(raw, "F16", "Q4_0", np.ones(256, np.float32))
