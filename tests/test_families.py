"""Every family converts, runs and collects importance: a random model of transformers, once as transformers computes it
and once as the GGUF that conversion makes of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quantmill.gguf_io.convert import SUPPORTED
from quantmill.gguf_io.convert.families import FAMILIES as KNOWN
from quantmill.imatrix.collect import Result, Settings, collect
from quantmill.imatrix.coverage import uncollected
from quantmill.models.errors import ModelError
from quantmill.models.model import LoadedModel, load
from tests.support.convert_models import write_f32, write_model
from tests.support.measure_families import FAMILIES, MISTRAL_4, random_model

# Classes that no model of FAMILIES has: another name of one that is there.
ALIASES = {
    "LLaMAForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",  # test_text_of_a_mistral_that_sees
    "Ernie4_5_ForCausalLM",
    "ExaoneMoEForCausalLM",
    "LFM2ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",  # test_text_of_a_model_that_sees
    "Qwen3VLMoeForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
    "BailingMoeV3ForCausalLM",
    "MiniMaxM3SparseForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration",
}
# Classes whose GGUF is converted and quantized, not run.
NOT_RUN = {
    "Llama4ForCausalLM": "its experts are multiplied as whole stacks, not one by one",
    "Llama4ForConditionalGeneration": "the same",
    "Step3p5ForCausalLM": "transformers has its text model only inside the one that sees",
    "Step3p7ForConditionalGeneration": "the same",
    "KimiK3ForConditionalGeneration": "transformers has no model of this class",
    "MiMoV2ForCausalLM": "transformers has no model of this class",
    "BailingMoeForCausalLM": "transformers has no model of this class",
    "BailingMoeV2ForCausalLM": "transformers has no model of this class",
    "Glm5NextForConditionalGeneration": "transformers has its text model only inside the one that sees",
    "MuseGlimmerForConditionalGeneration": "transformers has its text model only inside the one that sees",
    "Qwen4ExpForConditionalGeneration": "transformers makes the numbers of its hash, which a GGUF holds",
    "Qwen4ExpForCausalLM": "the same",
    "BertModel": "makes vectors of texts, whose tokens all see each other",
    "XLMRobertaModel": "makes vectors of texts, whose tokens all see each other",
    "NomicBertModel": "makes vectors of texts, whose tokens all see each other",
    "HYV4ForCausalLM": "its RoPE turns pairs in llama.cpp, halves in transformers",
    "Gemma3TextModel": "makes vectors of texts, whose tokens all see each other",
    "ModernBertModel": "makes vectors of texts, whose tokens all see each other",
}


class Watched:
    """Sums over all positions of what enters each linear layer of transformers' own model, squared."""

    def __init__(self, model: nn.Module):
        self.sums: dict[str, np.ndarray] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._hook(f"{name}.weight"))

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            x = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
            self.sums[name] = self.sums.get(name, 0) + (x * x).sum(0).numpy()

        return hook


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    original = random_model(tmp_path, *FAMILIES[name])
    check_family(original, tmp_path)


SEEING = {
    "mistral": ("Mistral3ForConditionalGeneration", "mistral3"),
    "ministral 3": ("Mistral3ForConditionalGeneration", "mistral3"),
    "mistral 4": ("Mistral3ForConditionalGeneration", "mistral3"),
    "qwen3, yarn": ("Qwen3VLForConditionalGeneration", "qwen3_vl"),
    "qwen3 moe": ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"),
}


@pytest.mark.parametrize("name", SEEING)
def test_text_of_a_model_that_sees(name: str, tmp_path: Path) -> None:
    original = random_model(tmp_path, *FAMILIES.get(name, MISTRAL_4))
    text = json.loads((tmp_path / "config.json").read_text())
    config = dict(zip(("architectures", "model_type"), ([SEEING[name][0]], SEEING[name][1]), strict=True))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"text_config": {**text, "architectures": None}})
    )
    check_family(original, tmp_path)


def check_family(original: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    watched = Watched(original)
    ids = torch.randint(0, 2048, (1, 80), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = original(input_ids=ids).logits
    loaded = load(write_f32(tmp_path, tmp_path / "model.gguf"))
    # Llama 3's factors and YaRN's ramp are computed in another order; all else is the same arithmetic.
    torch.testing.assert_close(loaded.logits(ids), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
    _check_importance(loaded, ids, watched.sums)
    loaded.close()


def _check_importance(loaded: LoadedModel, ids: torch.Tensor, sums: dict[str, np.ndarray]) -> None:
    """Each matrix of a layer has its entry, and the sums of linear layers are those of transformers' model."""
    result = Result()
    for _ in collect(
        loaded.model, loaded.table, ids.numpy().astype(np.int32), Settings(perplexity=False), result
    ):
        pass
    views = loaded.table.views
    matrix = result.matrix((), 80)
    missing = uncollected(matrix, [(name, len(view.shape)) for name, view in views.items()])
    assert missing == []
    assert {name for name in matrix.entries if name not in views or len(views[name].shape) < 2} == set()
    for hf_name, expected in sums.items():
        for use in loaded.table.uses.get(hf_name, ()):
            if use.name.startswith("blk.") and views[use.name].matrices == 1:
                columns = slice(None) if views[use.name].columns is None else views[use.name].columns
                found = np.asarray(matrix.entries[use.name].in_sum2).reshape(-1)
                np.testing.assert_allclose(found, expected[columns], rtol=1e-3, atol=1e-5 * expected.max())


def test_every_supported_class_is_among_them() -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    covered = {CLASSES[AutoConfig.for_model(kind).model_type] for kind, _ in FAMILIES.values()}
    assert set(SUPPORTED) == covered | ALIASES | set(NOT_RUN)


def test_no_family_is_without_the_three() -> None:
    """Each is among those that convert, run and collect importance above, or is listed with its reason."""
    there = {kind for kind, _ in (*FAMILIES.values(), MISTRAL_4)}
    assert {family.model_type for family in KNOWN if family.runs} <= there
    assert {name for family in KNOWN if not family.runs for name in family.classes} == set(NOT_RUN)


def test_the_docs_name_every_family() -> None:
    page = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
    names = (*SUPPORTED, *(family.name for family in KNOWN))
    assert [name for name in names if f"`{name}`" not in page] == []
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"{len(SUPPORTED)} classes of models of {len({one.name for one in KNOWN})} architectures" in readme


def test_what_is_not_run_is_refused_in_one_line(tmp_path: Path) -> None:
    directory = write_model("embedding-gemma", tmp_path / "model")
    with pytest.raises(
        ModelError, match=r"model: quantmill cannot run gemma-embedding in torch .*llama-imatrix"
    ):
        load(directory)
    with pytest.raises(ModelError, match="'gemma-embedding': quantmill cannot run it in torch"):
        load(write_f32(directory, tmp_path / "model.gguf"))


def test_of_one_architecture_some_run(tmp_path: Path) -> None:
    directory = write_model("mimo-v2.5-bf16", tmp_path / "model")
    with pytest.raises(
        ModelError, match="'mimo2': quantmill runs other models of it in torch, but none with these"
    ):
        load(write_f32(directory, tmp_path / "model.gguf"))
