"""Small random models of every family, as transformers makes them: the reference of test_families.py."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from quantmill.models.fill import of_config
from tests.support.convert_tokenizers import write_tokenizer
from tests.support.measure_models import EXAMPLE

DATA = Path(__file__).parents[1] / "data"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
COMMON: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
# Name → transformers' model type and what it changes. Settings that a family reads from metadata differ from defaults.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (kind, settings)
    for name, (kind, settings) in json.loads((DATA / "families.json").read_text(encoding="utf-8")).items()
}
# Transformers has no class of its own for a directory of it; test_families.py wraps it.
MISTRAL_4 = FAMILIES.pop("mistral 4")
# Families whose vocabulary the example's tokenizer cannot be: tests.convert_tokenizers' kinds.
VOCABULARIES = {
    "gemma2": "spm",
    "phi3": "spm",
    "glm4": "llama-bpe",
    "glm4_moe": "llama-bpe+glm",
    "glm4_moe_lite": "llama-bpe+glm",
    "ernie4_5": "spm",
    "ernie4_5_moe": "spm",
    "gemma3n_text": "spm",
    "gemma4_text": "gemma4",
    "glm_moe_dsa": "llama-bpe+glm",
}


def random_model(path: Path, kind: str, settings: dict[str, Any]) -> Any:
    """A model with weights that matter: norms off their defaults, routers and biases not zero."""
    torch.manual_seed(0)
    # Configuration classes write into the dictionaries that they are given.
    config = AutoConfig.for_model(kind, **copy.deepcopy(COMMON | settings))
    model: Any = of_config(config, torch.float32).eval()
    with torch.no_grad():
        for tensor in (
            *model.parameters(),
            *(b for name, b in model.named_buffers() if "e_score" in name or "expert_bias" in name),
        ):
            if tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn_like(tensor))
            else:
                tensor.mul_(2)
        for name, tensor in model.named_buffers():
            if name.endswith("tid2eid"):  # experts of each token
                first = torch.randint(0, config.n_routed_experts, tensor.shape[:1])
                tensor.copy_(torch.stack((first, (first + 1) % config.n_routed_experts), 1))
    model.save_pretrained(path)
    if kind in VOCABULARIES:
        write_tokenizer(path, VOCABULARIES[kind], COMMON["vocab_size"])
    else:
        for name in TOKENIZER:
            shutil.copy(EXAMPLE / name, path / name)
    return model
