"""What quantize() refuses, and how it says so."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill import qkernels
from tests.support import data_kinds, oracle


@pytest.fixture
def rows() -> np.ndarray:
    return data_kinds.rows("normal", 4, 512)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(rows: np.ndarray, value: float) -> None:
    rows[2, 7] = value
    with pytest.raises(qkernels.QuantizeError, match="row 2, column 7"):
        qkernels.quantize(rows, "Q4_K")


def test_importance_that_is_not_finite_is_named(rows: np.ndarray) -> None:
    importance = np.ones(512, np.float32)
    importance[3] = np.nan
    with pytest.raises(qkernels.QuantizeError, match="importance: nan in column 3"):
        qkernels.quantize(rows, "Q4_K", importance)


def test_importance_of_another_length(rows: np.ndarray) -> None:
    with pytest.raises(qkernels.QuantizeError, match=r"shape \[256\], the rows have 512"):
        qkernels.quantize(rows, "Q4_K", np.ones(256, np.float32))


def test_missing_importance(rows: np.ndarray) -> None:
    with pytest.raises(qkernels.QuantizeError, match="IQ2_XXS needs importance"):
        qkernels.quantize(rows, "IQ2_XXS")


def test_rows_that_are_not_whole_blocks() -> None:
    with pytest.raises(qkernels.QuantizeError, match="4000 columns, Q4_K needs a multiple of 256"):
        qkernels.quantize(np.zeros((1, 4000), np.float32), "Q4_K")


def test_rows_of_another_dtype() -> None:
    with pytest.raises(qkernels.QuantizeError, match="must be float32"):
        qkernels.quantize(np.zeros((1, 256), np.float64), "Q4_K")


def test_unknown_names(rows: np.ndarray) -> None:
    with pytest.raises(qkernels.QuantizeError, match="unknown type 'Q4_Z'; did you mean Q4_K"):
        qkernels.quantize(rows, "Q4_Z")
    with pytest.raises(qkernels.QuantizeError, match="unknown engine 'gpu'"):
        qkernels.quantize(rows, "Q4_K", engine="gpu")


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K", "Q6_K", "F16"])
def test_weights_beyond_the_scales_format(rows: np.ndarray, type: str) -> None:
    rows[1] *= 1e12
    with pytest.raises(qkernels.QuantizeError, match="row 1: weights too large"):
        qkernels.quantize(rows, type)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["wide range", "1e-38", "bf16"])
def test_conversions_are_ggmls(type: str, kind: str) -> None:
    rows = data_kinds.rows(kind, 8, 256)
    assert np.array_equal(qkernels.quantize(rows, type), oracle.quantize(rows, type))


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_plain_types_are_read_exactly(type: str) -> None:
    rows = data_kinds.rows("coarse", 8, 256)
    assert np.array_equal(qkernels.to_float32(qkernels.quantize(rows, type), type), rows)
