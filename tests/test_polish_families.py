"""The gradients that polish collects, of every family, against autograd on transformers' own dense model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from quantmill.calibrate.head import Divergence, check_head
from quantmill.calibrate.rates import Rates
from quantmill.calibrate.student import Student
from quantmill.cli import main
from quantmill.gguf_io import GGUFSink, OutputTensor, open_source
from quantmill.gguf_io.convert import open_checkpoint
from quantmill.models.model import LoadedModel, load
from quantmill.models.workers import working
from quantmill.qkernels import to_float32
from tests.support.measure_families import FAMILIES, random_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny-qwen3-moe"
TYPE = "Q4_1"  # two scales a block
BLOCK = 32
# A GGUF of these holds factors of the configuration inside its matrices; in its own configuration they are 1.
FACTORS_INSIDE = ("falcon h1", "granite 4, dense")
# With an embedding for every layer, which polish does not run.
REFUSED = ("gemma 3n", "gemma 4")


def quantized(model: Path, path: Path) -> Path:
    """The matrices of a model in TYPE by the gguf package, its vectors in F32."""
    source = open_checkpoint(model, "f32")
    parts = {}
    for spec in source.specs():
        if spec.type == "I32":  # a table of experts by word
            parts[spec.name] = (OutputTensor(spec.name, spec.shape, spec.type), source.read(spec.name))
            continue
        values = to_float32(source.read(spec.name), spec.type)
        # ggml's own types for routers, as the converter leaves them.
        vector = len(spec.shape) < 2 or spec.name.endswith(".bias") or "norm" in spec.name
        kept = vector or any(part in spec.name for part in ("gate_inp", "rope", "hc_", "_ape"))
        kept = kept or spec.shape[0] % BLOCK
        name = "F32" if kept else TYPE
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        parts[spec.name] = (OutputTensor(spec.name, spec.shape, name), raw.view("uint8"))
    with GGUFSink(path, source.metadata, [tensor for tensor, _ in parts.values()]) as sink:
        for name, (_, raw) in parts.items():
            sink.write(name, raw)
        sink.commit()
    return path


def fill_dense(original: Any, path: Path, loaded: LoadedModel) -> None:
    """Put what the file's blocks mean into transformers' model."""
    source = open_source(path)
    specs = {spec.name: spec for spec in source.specs()}

    def read(name: str) -> np.ndarray:
        whole = specs[name].type == "I32"
        values = source.read(name).view("<i4") if whole else to_float32(source.read(name), specs[name].type)
        return values.reshape(loaded.table.views[name].shape)

    tensors = dict(original.named_parameters()) | dict(original.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name in loaded.table.uses:
                tensor.copy_(torch.from_numpy(loaded.table.to_hf(name, read).astype(np.float32)))
    source.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_polish_does_not_run_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model(tmp_path, *FAMILIES[name])
    path = quantized(tmp_path, tmp_path / "model.gguf")
    words = ["polish", str(path), "--base", str(tmp_path), "--calibration", str(EXAMPLE / "calibration.txt")]
    assert main(words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "per_layer_token_embd.weight" in line
    assert "--search thorough" in line


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_gradients_are_autograds(name: str, tmp_path: Path) -> None:
    original = random_model(tmp_path, *FAMILIES[name])
    path = quantized(tmp_path, tmp_path / "model.gguf")
    loaded = load(path)
    if name in FACTORS_INSIDE:
        original = type(loaded.model)(copy.deepcopy(loaded.model.config)).eval()
    fill_dense(original, path, loaded)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 2048, (1, 48), generator=generator)
    wanted = torch.randn(48, 128, generator=generator)

    with working(2, "cpu") as workers:
        student = Student(loaded, torch.float32, workers)
        matrix = student.head_weight.matrix(0)
        check_head(loaded.model, student.head, matrix, ids)
        divergence = Divergence(student.head, matrix, student.head, student.head_weight, workers)
        student.start(Rates({TYPE: 1.0}, 1.0))
        loss = student.pull(ids[0].numpy(), wanted, divergence)

    teacher = torch.log_softmax(_logits(original, wanted[None]).detach(), -1)[0]
    found = torch.log_softmax(original(input_ids=ids, use_cache=False).logits, -1)[0]
    expected = (teacher.exp() * (teacher - found)).sum(-1).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    gradients = {key: parameter.grad for key, parameter in original.named_parameters()}
    _check_scales(student, path, loaded, gradients)
    assert student.vectors
    for vector in student.vectors:
        exact = gradients[vector.name]
        if exact is None:  # chooses experts only
            exact = torch.zeros_like(vector.unit)
        scale = float(exact.abs().max()) * float(vector.unit.abs().max())
        torch.testing.assert_close(
            vector.gradient(0), exact * vector.unit, atol=2e-4 * scale + 1e-7, rtol=1e-3
        )


def _logits(original: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What the model's own class makes of final hidden states, by standing in for its layers."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    decoder = original.get_decoder()
    inner = decoder.forward
    output = MoeModelOutputWithPast(last_hidden_state=hidden)
    output.shared_kv_states = None  # type: ignore[attr-defined]  # Gemma 4's class looks for it
    decoder.forward = lambda *args, **kwargs: output
    try:
        return original(input_ids=torch.zeros(1, hidden.shape[1], dtype=torch.int64)).logits
    finally:
        decoder.forward = inner


def _check_scales(student: Student, path: Path, loaded: LoadedModel, gradients: dict[str, Any]) -> None:
    """dL/dε of every scale is the sum over its block of dL/dW times the part of W that the scale makes."""
    source = open_source(path)
    assert {piece.name for piece in student.moving} == {s.name for s in source.specs() if s.type == TYPE}
    for piece in student.moving:
        view = loaded.table.views[piece.name]
        raw = source.read(piece.name).reshape(view.matrices, -1, source.read(piece.name).shape[-1])
        if isinstance(view.rows, np.ndarray) and piece.piece.view.rows is None:
            raw = raw[:, np.argsort(view.rows)]
        blocks = raw.reshape(*raw.shape[:2], -1, 20)
        d, m = (blocks[..., at : at + 2].copy().view("<f2").astype(np.float64) for at in (0, 2))
        low, high = blocks[..., 4:] & 15, blocks[..., 4:] >> 4
        first = d * np.concatenate([low, high], -1)
        hf = torch.cat([_gradient(gradients, name, view) for name in view.sources])
        rows = piece.piece.view.rows
        taken = [_taken(one, view, rows) for one in hf]
        # A Hugging Face tensor cut into several matrices gives as many in turn.
        values = np.stack(taken).reshape(*blocks.shape[:3], BLOCK)
        exact = np.stack([(values * first).sum(-1), (values * m).sum(-1)], -1)
        scale = float(np.abs(exact).max())
        np.testing.assert_allclose(piece.gradient(0).numpy(), exact, atol=2e-4 * scale + 1e-9, rtol=2e-3)
    source.close()


def _gradient(gradients: dict[str, Any], name: str, view: Any) -> torch.Tensor:
    """[n_matrices, …]; zeros for what only chooses positions, where autograd has none."""
    found = gradients[name]
    return (torch.zeros(view.source_matrix) if found is None else found).reshape(-1, *view.source_matrix)


def _taken(gradient: torch.Tensor, view: Any, rows: Any) -> np.ndarray:
    matrix = gradient.double().numpy()
    matrix = matrix if rows is None else matrix[rows]
    matrix = matrix if view.columns is None else matrix[:, view.columns]
    return matrix.T if view.transpose else matrix
