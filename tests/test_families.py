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
from quantmill.imatrix.collect import Result, Settings, collect
from quantmill.imatrix.coverage import uncollected
from quantmill.models.model import LoadedModel, load
from tests.support.convert_models import write_f32
from tests.support.measure_families import FAMILIES, random_model

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


@pytest.mark.parametrize("name", ["mistral", "ministral 3"])
def test_text_of_a_mistral_that_sees(name: str, tmp_path: Path) -> None:
    original = random_model(tmp_path, *FAMILIES[name])
    text = json.loads((tmp_path / "config.json").read_text())
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
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
    missing = uncollected(result.matrix((), 80), [(name, len(view.shape)) for name, view in views.items()])
    assert missing == []
    assert {name for name in result.entries if name not in views or len(views[name].shape) < 2} == set()
    for hf_name, expected in sums.items():
        for use in loaded.table.uses.get(hf_name, ()):
            if use.name.startswith("blk.") and views[use.name].matrices == 1:
                columns = slice(None) if views[use.name].columns is None else views[use.name].columns
                found = np.asarray(result.entries[use.name].in_sum2).reshape(-1)
                np.testing.assert_allclose(found, expected[columns], rtol=1e-3, atol=1e-5 * expected.max())


def test_every_supported_class_is_among_them() -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    covered = {CLASSES[AutoConfig.for_model(kind).model_type] for kind, _ in FAMILIES.values()}
    assert set(SUPPORTED) == covered | ALIASES
