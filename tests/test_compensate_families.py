"""Compensation of models whose layers are given more than hidden states, from the checkpoint to a file that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantmill.jobs import compensate, quantize
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.quantize import Job
from quantmill.models.model import load
from quantmill.recipe import Recipe
from tests.support.convert_models import write_f32
from tests.support.llama_model import LlamaModel
from tests.support.measure_families import FAMILIES, random_model
from tests.support.measure_models import EXAMPLE

N_TOKENS = 256
TEXT = str(EXAMPLE / "calibration.txt")
# llama.cpp holds some of Gemma 3n's settings to be those of the published models.
FOR_LLAMA_CPP = {"hidden_size_per_layer_input": 256, "laurel_rank": 64, "num_kv_shared_layers": 0}
CHANGED = {"gemma 3n": FOR_LLAMA_CPP, "gemma 4": {}, "glm 5": {}, "deepseek v4": {}}
FAST = ("gemma 4", "deepseek v4")
# xllamacpp's build ends the process where it makes a context for one.
NOT_IN_LLAMA_CPP = "deepseek v4"


def log_softmax(path: Path, tokens: list[int], by_llama: bool) -> np.ndarray:
    if by_llama:
        with LlamaModel(path, n_ctx=len(tokens)) as model:
            logits = torch.from_numpy(model.logits(tokens))
    else:
        loaded = load(path)
        logits = loaded.logits(torch.tensor([tokens]))[0]
        loaded.close()
    return torch.log_softmax(logits.double(), -1).numpy()


def words(path: Path) -> list[int]:
    loaded = load(path)
    found = loaded.tokenizer.encode((EXAMPLE / "evaluation.txt").read_text())
    loaded.close()
    return found[:N_TOKENS]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in CHANGED]
)
def test_a_compensated_file_runs_and_is_nearer_to_the_original(name: str, tmp_path: Path) -> None:
    directory, made, plain = tmp_path / "model", tmp_path / "made.gguf", tmp_path / "plain.gguf"
    kind, settings = FAMILIES[name]
    random_model(directory, kind, settings | CHANGED[name])
    job = Job(str(directory), made, Recipe("Q4_0"), device="cpu", threads=1)
    result = compensate.run(job, Calibration((TEXT,), n_chunks=4))
    assert result.errors
    assert sum(error.held for error in result.errors) < 0.9 * len(result.errors)
    quantize.run(Job(job.source, plain, job.recipe, device="cpu", threads=1))
    tokens = words(made)
    by_llama = name != NOT_IN_LLAMA_CPP
    original = log_softmax(write_f32(directory, tmp_path / "original.gguf"), tokens, by_llama)
    losses = []
    for path in (made, plain):
        other = log_softmax(path, tokens, by_llama)
        losses.append((np.exp(original) * (original - other)).sum(1))
    gain = losses[1] - losses[0]
    assert gain.mean() > 4 * gain.std(ddof=1) / len(gain) ** 0.5
