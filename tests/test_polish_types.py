"""Polished files of every type in llama.cpp itself, and factors of whole matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quantmill.calibrate.head import Divergence
from quantmill.calibrate.rates import Rates
from quantmill.calibrate.student import Student
from quantmill.gguf_io import open_source
from quantmill.imatrix.text import Text
from quantmill.jobs import convert, polish, quantize
from quantmill.models.fill import matrix_factors
from quantmill.models.model import load
from quantmill.models.workers import working
from quantmill.qkernels import dequantize
from quantmill.qkernels.scales import read_scales
from quantmill.qkernels.types import TYPES
from quantmill.recipe import Recipe, parse_rule
from tests.support.llama_model import LlamaModel
from tests.support.measure_models import EXAMPLE
from tests.support.packed_models import write_packed

QUANTIZED = [name for name, row in TYPES.items() if row.family != "plain"]
FAST = ("Q3_K",)
TOKENS = [1, 259, 17, 300, 42, 5, 199, 260, 7, 7, 88, 311, 123, 64, 250, 9]


def plain_file(type: str, path: Path) -> Path:
    recipe = Recipe("Q8_0", rules=(parse_rule(f"^blk.*={type}"),))
    job = quantize.Job(
        str(EXAMPLE), path, recipe, imatrix=str(EXAMPLE / "imatrix.gguf"), device="cpu", threads=1
    )
    quantize.run(job)
    return path


@pytest.mark.parametrize(
    "type", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in QUANTIZED]
)
def test_llama_cpp_runs_a_polished_file(type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are ours, up to the eight bits that it gives to activations, and it generates."""
    monkeypatch.setattr(polish, "ACCEPTED", 1.0)  # few chunks prove little; this is about the file
    plain = plain_file(type, tmp_path / "plain.gguf")
    texts = (Text(EXAMPLE / "calibration.txt"),)
    result = polish.run(polish.Job(plain, EXAMPLE, texts, device="cpu", n_chunks=12, threads=1))
    if not result.paths:
        pytest.skip(f"{type}: six chunks did not make it better, nothing was written")
    before, after = open_source(plain), open_source(result.paths[0])
    changed = {
        spec.type
        for spec in before.specs()
        if not np.array_equal(before.read(spec.name), after.read(spec.name))
    }
    assert changed >= {"F32", type}
    with LlamaModel(result.paths[0]) as model:
        found = model.logits(TOKENS)
    expected = load(result.paths[0], device="cpu").logits(torch.tensor([TOKENS]))[0].numpy()
    # not the largest difference: where two experts are nearly as good, another is asked
    assert np.median(np.abs(found - expected)) <= 0.01 * np.abs(expected).max()
    said = TOKENS[:8]
    for _ in range(3):  # greedy, each token from all before it
        with LlamaModel(result.paths[0]) as model:
            logits = model.logits(said)[-1]
        assert np.isfinite(logits).all()
        said = [*said, int(logits.argmax())]


def test_codes_begin_at_the_original_times_its_own_factors(tmp_path: Path) -> None:
    """Over the file's: a file is its own original here, so that they begin at its decoded blocks."""
    convert.run(
        convert.Conversion(write_packed("nvfp4-modelopt", tmp_path / "packed"), tmp_path / "out.gguf")
    )
    loaded = load(tmp_path / "out.gguf", device="cpu")
    source = open_source(tmp_path / "out.gguf")
    factors = matrix_factors(source, loaded.table)
    with working(1, "cpu") as workers:
        student = Student(loaded, torch.float32, workers)
        pieces = [piece for piece in student.pieces.values() if piece.piece.factors is not None]
        assert {piece.name for piece in pieces} == set(factors)
        for piece in pieces:
            found = student._original(piece, 0, source, factors[piece.name])
            expected = dequantize(piece.piece.blocks[0], piece.type)
            assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_a_factor_grows_with_all_scales_of_its_matrix(tmp_path: Path) -> None:
    """NVFP4's factor: the collected gradient against a difference of losses, and what is written."""
    convert.run(
        convert.Conversion(write_packed("nvfp4-modelopt", tmp_path / "packed"), tmp_path / "out.gguf")
    )
    loaded = load(tmp_path / "out.gguf", device="cpu")
    ids = np.array(TOKENS, np.int32)
    with working(1, "cpu") as workers:
        student = Student(loaded, torch.float32, workers)
        matrix = student.head_weight.matrix(0)
        wanted = torch.randn(len(ids), matrix.shape[1], generator=torch.Generator().manual_seed(1))
        divergence = Divergence(student.head, matrix, student.head, student.head_weight, workers)
        student.start(Rates({"NVFP4": 1.0}, 1.0))

        student.pull(ids, wanted, divergence)
        factor = max(student.factors, key=lambda one: float(one.gradient(0).abs().max()))
        exact = float(factor.gradient(0)[0])
        losses = []
        for step in (1e-2, -1e-2):
            factor.change[0] = step
            factor.apply()
            losses.append(divergence.loss_and_gradient(wanted, student.hidden(ids).detach())[0])
        assert exact != 0
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(exact, rel=2e-2)
        written = student.changed_tensors()[factor.name].view("<f4")[0]
    stored = open_source(tmp_path / "out.gguf").read(factor.name).view("<f4")[0]
    assert written[0] == pytest.approx(0.99 * stored[0], rel=1e-6)
    assert np.array_equal(written[1:], stored[1:])


@pytest.mark.parametrize("type", ["MXFP4", "NVFP4"])
def test_codes_move_where_scales_stay(type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales on grids of their own, E8M0 and E4M3, stay as they are."""
    monkeypatch.setattr(polish, "ACCEPTED", 1.0)
    plain = plain_file(type, tmp_path / "plain.gguf")
    texts = (Text(EXAMPLE / "calibration.txt"),)
    result = polish.run(polish.Job(plain, EXAMPLE, texts, device="cpu", n_chunks=40, threads=1))
    before, after = open_source(plain), open_source(result.paths[0])
    changed = 0
    for spec in before.specs():
        if spec.type == type:
            old, new = (torch.from_numpy(np.array(source.read(spec.name))) for source in (before, after))
            assert torch.equal(read_scales(old, type), read_scales(new, type)), spec.name
            changed += int((old != new).sum())
    assert changed
