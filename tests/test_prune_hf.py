"""A pruned model as Hugging Face's: transformers computes what the pruned GGUF does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quantmill.cli import main
from quantmill.errors import QuantmillError
from quantmill.gguf_io import open_source
from quantmill.jobs.prune_hf import Job as HFJob
from quantmill.jobs.prune_hf import run as to_hf
from quantmill.models.fill import of_config
from quantmill.models.model import load
from quantmill.recipe.prune_experts import (
    Share,
)
from tests.support.measure_families import FAMILIES, random_model
from tests.support.measure_models import tiny
from tests.test_prune_experts import IDS, USUAL, WITH_EXPERTS


def require_same_logits(model, path):
    """transformers' model computes what the GGUF does."""
    loaded = load(path)
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits
    wanted = loaded.logits(torch.tensor([IDS]))
    torch.testing.assert_close(found, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)
    loaded.close()


@pytest.mark.parametrize("name", USUAL)
def test_hugging_face_output_without_layers_and_experts(name, tmp_path):
    """transformers loads the folder, and computes what quantmill computes of the cut GGUF."""
    torch.set_num_threads(1)
    random_model(tmp_path / "model", *FAMILIES[name])
    result = to_hf(HFJob(str(tmp_path / "model"), tmp_path / "out", (2,), Share(0.25)))
    assert result.pruned is None
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["quantmill_pruned"]["layers"] == [2]
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    command = ["quantize", "--prune-layers", "2", "--prune-experts", "0.25", str(tmp_path / "model")]
    assert main([*command, str(tmp_path / "cut.gguf"), "F32"]) == 0
    require_same_logits(model, tmp_path / "cut.gguf")
    shapes = [
        {spec.name: spec.shape for spec in open_source(tmp_path / path).specs()}
        for path in ("out", "cut.gguf")
    ]
    assert shapes[0] == shapes[1]  # and converts again


def test_hugging_face_output_of_a_gguf(tmp_path, capsys):
    """Of a quantized GGUF, with no tokenizer; a folder that holds something is left alone."""
    command = ["prune", str(tiny("Q4_0")), "--to-hf", str(tmp_path / "out"), "--layers", "1"]
    assert main(command) == 0
    assert "has no tokenizer" in capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert model.config.num_hidden_layers == 3
    assert main(command) == 1
    assert "is there already" in capsys.readouterr().err
    assert Path(tmp_path / "out" / "model.safetensors").is_file()


# Layer 1 goes, or where that is the only one with attention, which transformers needs, another.
LEAVES = {"lfm2": 0, "lfm2 moe": 0}


REFUSED = dict.fromkeys(("gemma 3n", "gemma 4"), "per_layer_token_embd.weight holds a part for each layer")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_hugging_face_output_of_every_family(name, tmp_path):
    """Without a layer, and of experts without a quarter: transformers computes what the pruned GGUF does."""
    torch.set_num_threads(1)
    random_model(tmp_path / "model", *FAMILIES[name])
    share = Share(0.25) if name in WITH_EXPERTS else None
    layer = LEAVES.get(name, 1)
    job = HFJob(str(tmp_path / "model"), tmp_path / "out", (layer,), share)
    if name in REFUSED:
        with pytest.raises(QuantmillError, match=REFUSED[name]):
            to_hf(job)
        assert not (tmp_path / "out").exists()
        return
    to_hf(job)
    model = of_config(AutoConfig.from_pretrained(tmp_path / "out"), torch.float32)
    model = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32)
    command = ["quantize", "--prune-layers", str(layer), *(["--prune-experts", "0.25"] if share else [])]
    assert main([*command, str(tmp_path / "model"), str(tmp_path / "cut.gguf"), "F32"]) == 0
    require_same_logits(model, tmp_path / "cut.gguf")
