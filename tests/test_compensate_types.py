"""Compensated files of every type in llama.cpp itself: they load, they generate, and are nearer to the original."""

from pathlib import Path

import numpy as np
import pytest

from quantmill.jobs import compensate, quantize
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.quantize import Job
from quantmill.qkernels.lattices import GRIDS, LATTICES
from quantmill.recipe import Recipe
from quantmill.recipe.patterns import parse_rule
from tests.support.llama_model import LlamaModel
from tests.support.measure_models import EXAMPLE, tiny

N_TOKENS = 256


def log_softmax(path: Path, tokens: list[int]) -> np.ndarray:
    with LlamaModel(path, n_ctx=N_TOKENS) as model:
        logits = model.logits(tokens).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("type", [*LATTICES, *GRIDS])
def test_llama_cpp_runs_it_and_it_is_better_than_plain(type: str, tmp_path: Path) -> None:
    rules = (parse_rule(f"^blk.*={type}"),)
    made, plain = tmp_path / "made.gguf", tmp_path / "plain.gguf"
    job = Job(str(tiny("F16")), made, Recipe("Q8_0", rules=rules), device="cpu", threads=1)
    compensate.run(job, Calibration((str(EXAMPLE / "calibration.txt"),), n_chunks=24))
    imatrix = str(EXAMPLE / "imatrix.gguf")
    quantize.run(Job(job.source, plain, job.recipe, imatrix=imatrix, device="cpu", threads=1))
    with LlamaModel(tiny("F16")) as model:
        tokens = model.tokenize((EXAMPLE / "evaluation.txt").read_text()[:4000])[:N_TOKENS]
    original, ours, theirs = (log_softmax(path, tokens) for path in (tiny("F16"), made, plain))
    losses = [(np.exp(original) * (original - other)).sum(1) for other in (ours, theirs)]
    gain = losses[1] - losses[0]
    assert gain.mean() > -2 * gain.std(ddof=1) / len(gain) ** 0.5
    said = tokens[:8]
    for _ in range(4):  # greedy, each token from all before it
        with LlamaModel(made) as model:
            logits = model.logits(said)[-1]
        assert np.isfinite(logits).all()
        said = [*said, int(logits.argmax())]
