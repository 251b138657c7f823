"""A converted model computes in llama.cpp what the original computes in transformers."""

from __future__ import annotations

import numpy as np
import pytest

from bench.compare_convert import UNPRUNED, runs_quantized
from tests.support.compared_logits import UNCOMPARABLE, distance, of_llama_cpp, of_transformers, tolerance
from tests.support.convert_models import MODELS, write_model

FAST = ("llama-3.2", "qwen3-moe", "granite-moe")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in MODELS
        if name not in UNCOMPARABLE
    ],
)
def test_logits(name, tmp_path):
    directory = write_model(name, tmp_path / "model")
    expected = of_transformers(directory, name)
    found = of_llama_cpp(directory, tmp_path / "model.gguf")
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert distance(found, expected) <= tolerance(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "qwen3-moe" else pytest.mark.slow)
        for name in MODELS
        if name not in UNPRUNED
    ],
)
def test_quantized_without_a_layer_it_runs(name, tmp_path):
    assert runs_quantized(write_model(name, tmp_path / "model"), tmp_path / "model.gguf")
