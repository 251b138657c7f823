"""Factors of whole matrices beside NVFP4: what they save, and that llama.cpp multiplies with them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from quantmill.calibrate.tensor_scales import divided, tensor_scale
from quantmill.gguf_io import open_source
from quantmill.jobs import compensate
from quantmill.jobs.compensate_request import Calibration
from quantmill.jobs.quantize import Job
from quantmill.recipe import Recipe, tensor_scales
from quantmill.recipe.patterns import parse_rule
from tests.support.llama_model import LlamaModel
from tests.support.measure_families import FAMILIES, random_model
from tests.support.measure_models import EXAMPLE, tiny, written_again
from tests.test_compensate import Watching
from tests.test_compensate_families import log_softmax, words

TEXT = str(EXAMPLE / "calibration.txt")
RULES = (parse_rule(r"^blk\..*=NVFP4"),)
# Of tests/data/families.json, and the architecture of each in a GGUF.
MODELS = {
    "llama": "llama",
    "llama, tied, biased": "llama",
    "mixtral": "llama",
    "ministral 3": "mistral3",
    "qwen3, yarn": "qwen3",
    "qwen3 moe": "qwen3moe",
}
FAST = ("llama, tied, biased", "qwen3 moe")


def job_of(model: str | Path, output: Path, rules=RULES) -> Job:
    return Job(str(model), output, Recipe("Q8_0", rules=rules), device="cpu", threads=1)


def names_of(path: Path) -> set[str]:
    return {tensor.name for tensor in gguf.GGUFReader(path).tensors}


def test_a_scale_is_a_power_of_two_that_leaves_room() -> None:
    weights = torch.tensor([[[0.021, -0.3]], [[0.0, 0.0]], [[1e-30, 0.0]], [[900.0, 1.0]]])
    scales = tensor_scale(weights)
    mantissas, _ = torch.frexp(scales)
    assert (mantissas == 0.5).all()
    assert scales[1] == 1
    largest = (weights.abs().amax((1, 2)) / scales)[[0, 2, 3]]
    assert ((largest >= 128) & (largest < 256)).all()


def test_rows_are_divided_by_their_tensors_scales() -> None:
    rows = torch.arange(1.0, 25.0).reshape(2, 4, 3)
    found = divided(rows, [None, torch.tensor([2.0, 4.0])], [1, 3])
    np.testing.assert_array_equal(found[:, 0], rows[:, 0])
    np.testing.assert_array_equal(found[0, 1:], rows[0, 1:] / 2)
    np.testing.assert_array_equal(found[1, 1:], rows[1, 1:] / 4)


def test_every_architecture_is_tried() -> None:
    assert set(MODELS.values()) == tensor_scales._ARCHITECTURES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_llama_cpp_multiplies_with_them(name: str, tmp_path: Path) -> None:
    kind, settings = FAMILIES[name]
    random_model(tmp_path / "model", kind, settings)
    made = tmp_path / "made.gguf"
    compensate.run(job_of(tmp_path / "model", made), Calibration((TEXT,), n_chunks=4))
    source = open_source(made)
    assert source.metadata.value("general.architecture") == MODELS[name]
    source.close()
    specs = {tensor.name: tensor for tensor in gguf.GGUFReader(made).tensors}
    scales = {found for found in specs if found.endswith(".scale")}
    matrices = {found for found in specs if specs[found].tensor_type.name == "NVFP4"}
    without = {
        found for found in matrices if f"{found.removesuffix('weight')}bias" in specs and ".ffn_" in found
    }
    assert scales == {f"{found.removesuffix('weight')}scale" for found in matrices - without}
    assert bool(without) == ("biased" in name)
    tokens = words(made)
    by_llama, ours = (log_softmax(made, tokens, by) for by in (True, False))
    assert (np.exp(ours) * (ours - by_llama)).sum(1).mean() < 1e-3


def test_other_architectures_get_none(tmp_path: Path) -> None:
    kind, settings = FAMILIES["qwen2"]
    random_model(tmp_path / "model", kind, settings)
    made = tmp_path / "made.gguf"
    compensate.run(job_of(tmp_path / "model", made), Calibration((TEXT,), n_chunks=4, effort="fast"))
    assert not [name for name in names_of(made) if name.endswith(".scale")]


def test_neither_threads_nor_an_interrupt_change_a_byte(tmp_path: Path) -> None:
    few = Calibration((TEXT,), n_chunks=4)
    made, gone_on = tmp_path / "made.gguf", tmp_path / "gone-on.gguf"
    compensate.run(job_of(tiny("F16"), made), few)
    with pytest.raises(KeyboardInterrupt):
        compensate.run(replace(job_of(tiny("F16"), gone_on), threads=2), few, Watching(stop_after=2))
    compensate.run(job_of(tiny("F16"), gone_on), replace(few, resume=True))
    assert gone_on.read_bytes() == made.read_bytes()


def test_small_weights_lose_far_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def smaller(spec, raw: np.ndarray) -> np.ndarray:
        """The same model: what stands behind a norm by 1/64, the norm by 64."""
        if re.search(r"blk\.\d+\.(attn_[qkv]|ffn_gate_exps|ffn_up_exps|ffn_gate_inp)\.weight", spec.name):
            return (raw.view("<f2" if spec.type == "F16" else "<f4") / 64).view(np.uint8)
        return (raw.view("<f4") * 64).view(np.uint8) if re.search(r"(attn|ffn)_norm", spec.name) else raw

    small = written_again(tiny("F16"), tmp_path / "small.gguf", smaller)
    made, without = tmp_path / "made.gguf", tmp_path / "without.gguf"
    few = Calibration((TEXT,), "fast", n_chunks=4)
    compensate.run(job_of(small, made), few)
    monkeypatch.setattr(tensor_scales, "_ARCHITECTURES", frozenset())
    compensate.run(job_of(small, without), few)
    assert names_of(without) == {name for name in names_of(made) if not name.endswith(".scale")}
    tokens = words(made)
    original, *others = (log_softmax(path, tokens, True) for path in (small, made, without))
    losses = [(np.exp(original) * (original - other)).sum(1).mean() for other in others]
    assert losses[0] < 0.5 * losses[1]


def test_of_a_pruned_model_they_have_the_new_names(tmp_path: Path) -> None:
    made = tmp_path / "made.gguf"
    job = job_of(tiny("F16"), made)
    compensate.run(
        replace(job, recipe=replace(job.recipe, prune_layers=(1,))), Calibration((TEXT,), "fast", n_chunks=4)
    )
    scales = {name for name in names_of(made) if name.endswith(".scale")}
    assert {name.split(".")[1] for name in scales} == {"0", "1", "2"}
    values = {tensor.name: tensor.data for tensor in gguf.GGUFReader(made).tensors if tensor.name in scales}
    assert values["blk.2.ffn_up_exps.scale"].shape == (8,)
    with LlamaModel(made) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()
