"""Distributions over words, compared row by row, against numpy's float64."""

from __future__ import annotations

import numpy as np
import pytest

from quantmill.qkernels.likelihoods import of_codes, of_logits


def logits(n_rows: int, n_words: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 3, (n_rows, n_words)) + rng.normal(0, 20, (n_rows, 1))).astype(np.float32)


def exact(values: np.ndarray) -> np.ndarray:
    """log-probabilities, f64."""
    values = values.astype(np.float64)
    top = values.max(axis=1, keepdims=True)
    return values - top - np.log(np.exp(values - top).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("n_words", [1, 2, 15, 16, 17, 1000, 49155])
def test_log_probabilities_and_divergences_are_those_of_float64(n_words: int) -> None:
    one, other = logits(5, n_words, 1), logits(5, n_words, 2)
    other = one + other / 30
    words = np.arange(5) % n_words
    p, q = exact(one), exact(other)
    base, quant = of_logits(one), of_logits(other)
    assert np.allclose(base.log_p(words), p[np.arange(5), words], atol=4e-6)
    assert (base.tops == one.argmax(axis=1)).all()
    wanted = (np.exp(p) * (p - q)).sum(axis=1)
    assert np.allclose(base.divergences(quant), wanted, rtol=2e-5, atol=4e-6)
    assert (base.divergences(base) == 0).all()
    floor = float(np.median(p))
    kept = np.where(p > floor, np.exp(p) * (p - q), 0).sum(axis=1)
    assert np.allclose(base.divergences(quant, floor), kept, rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("n_words", [9, 64, 151])
def test_codes_stand_for_numbers_of_a_scale_and_a_shift(n_words: int) -> None:
    rng = np.random.default_rng(3)
    stored = np.zeros(6, np.dtype([("scale", "<f4"), ("low", "<f4"), ("code", "<u2", n_words + 1)]))
    stored["code"] = rng.integers(0, 65536, (6, n_words + 1))
    stored["scale"], stored["low"] = 16 / 65535, -rng.uniform(16, 19, 6)
    codes = stored["code"][:, :n_words]  # rows lie apart, as in a file
    quant = logits(6, n_words, 4)
    p = stored["scale"][:, None].astype(np.float64) * codes + stored["low"][:, None]
    base, words = of_codes(codes, stored["scale"], stored["low"]), np.arange(6)
    assert np.allclose(base.log_p(words), p[words, words], atol=4e-6)
    assert np.allclose(base.side.values(), p, atol=4e-6)
    assert (base.tops == codes.argmax(axis=1)).all()
    for floor in (None, -16.0):
        terms = np.exp(p) * (p - exact(quant))
        wanted = (terms if floor is None else np.where(p > floor, terms, 0)).sum(axis=1)
        assert np.allclose(base.divergences(of_logits(quant), floor), wanted, rtol=1e-5, atol=1e-5)


def test_the_first_of_the_likeliest_words_is_the_top() -> None:
    values = np.zeros((4, 100), np.float32)
    values[1, [40, 77]], values[2, [16, 15]], values[3, 99] = 2, 3, 1
    assert of_logits(values).tops.tolist() == [0, 40, 15, 99]


def test_words_far_below_the_top_count_nothing() -> None:
    values = np.full((1, 50), -1e30, np.float32)
    values[0, 7] = 80
    found = of_logits(values)
    assert found.log_p(np.array([7])) == 0
    assert found.divergences(found) == 0
