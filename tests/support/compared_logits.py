"""What a converted model's logits in llama.cpp are compared with, and how near they come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantmill.models.fill import of_config
from tests.support import deepseek_v4_model
from tests.support.convert_models import MODELS, edit, tensors, write_f32, write_shards
from tests.support.llama_model import LlamaModel

TOKENS = [1, 259, 17, 300, 42, 5, 199, 260, 7, 7, 88, 311, 123, 64, 250, 9]
UNCOMPARABLE = {
    "gemma3-vision": "the tensors of gemma3 in a multimodal wrapper",
    "mistral3-vision": "the tensors of mistral in a multimodal wrapper",
    "ministral3-vision": "the tensors of ministral3 in a multimodal wrapper",
    "qwen3.5-vision": "the tensors of qwen3.5 in a multimodal wrapper",
    "glm4-moe-draft-nextn": "a draft, without the model's layers",
    "qwen3.5-draft-nextn": "a draft, without the model's layers",
    "kimi-k2.5-vision": "the tensors of deepseek-v3 in a multimodal wrapper",
    "step-3.5": "transformers has its text model only inside the one that sees",
    "step-3.5-nextn": "transformers has its text model only inside the one that sees",
    "hy-v4": "RoPE turns pairs in llama.cpp, halves in transformers; with pairs in both the distance is 4e-7",
    "deepseek-v4": "xllamacpp's llama.cpp divides by zero where no layer has a cache of all tokens; that of "
    "llama_cpp_python 0.3.36 comes within 1e-5 of transformers, with 16 and with 300 tokens",
    "qwen4-exp": "not run: transformers makes the numbers of the hash, which a GGUF holds",
    "bert": "an embedding model",
    "xlm-roberta": "an embedding model",
    "xlm-roberta-json": "an embedding model",
    "nomic-bert": "an embedding model",
    "muse-glimmer": "transformers has its text model only inside the one that sees",
    "kimi-k3-text": "transformers has no model of this class",
    "kimi-k3-packed": "transformers has no model of this class",
    "mimo-v2.5-bf16": "transformers has no model of this class",
    "mimo-v2.5-nextn": "transformers has no model of this class",
    "ling": "transformers has no model of this class",
    "ling-2": "transformers has no model of this class",
    "ling-2-nextn": "transformers has no model of this class",
    "qwen3-embedding": "an embedding model: the tensors of qwen3",
    "embedding-gemma": "an embedding model",
    "modernbert": "an embedding model",
    "llama-fp8": "transformers reads it with the compressed-tensors package only",
    "deepseek-v3-fp8": "transformers' FP8 kernels need a GPU; the values are tested elsewhere",
    "deepseek-v2-lite": "llama.cpp knows DeepSeek-V2 without q_lora_rank by its 26 or 27 layers only",
    "exaone4-swa": "llama.cpp knows the window of EXAONE 4 in the model of 64 layers only",
}
OF_IMAGES = ("model_type", "rope_scaling")  # settings that a model of text has otherwise
TEXT_PARTS = ("qwen3-vl-vision", "qwen3-vl-moe-vision", "mistral4-vision")
FLOAT_ERROR = 2e-6  # of the largest logit
# ggml's GELU looks up a table in half precision; its MXFP4 products round activations to eight bits.
HALF_PRECISION_GELU, EIGHT_BIT_ACTIVATIONS = 1e-3, 2e-2
TOLERANCES = {
    "gemma2": HALF_PRECISION_GELU,
    "gemma3": HALF_PRECISION_GELU,
    "gemma3n": HALF_PRECISION_GELU,
    "gemma4": HALF_PRECISION_GELU,
    "gemma4-moe": HALF_PRECISION_GELU,
    "starcoder2": HALF_PRECISION_GELU,
    "gpt-oss": EIGHT_BIT_ACTIVATIONS,
}


def tolerance(name: str) -> float:
    return TOLERANCES.get(name, FLOAT_ERROR)


def of_transformers(directory: Path, name: str) -> np.ndarray:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils.quantization_config import Mxfp4Config

    if name in TEXT_PARTS:
        return _logits(_text_part(name))
    if name == "deepseek-v4":  # transformers' kernels for FP8 need a GPU
        directory = _in_floats(directory)
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if name == "gpt-oss" else {}
    kind = AutoModelForImageTextToText if MODELS[name].whole else AutoModelForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager", **options)
    return _logits(model)


def _in_floats(directory: Path) -> Path:
    """A copy of DeepSeek V4's checkpoint without packed tensors."""
    plain = directory.with_name(f"{directory.name}-plain")
    shutil.copytree(directory, plain)
    edit(plain / "config.json", quantization_config=None, expert_dtype=None)
    write_shards(plain, deepseek_v4_model.in_floats(tensors("deepseek-v4")))
    return plain


def _text_part(name: str) -> Any:
    """The model of the text alone, where transformers has none of this class: its weights out of the wrapper."""
    from transformers import AutoConfig

    settings, base = MODELS[name].config["text_config"], MODELS[name].tensors_of
    text = {key: value for key, value in settings.items() if key not in OF_IMAGES}
    kind = MODELS[base].model_type if base else settings["model_type"]
    model = of_config(AutoConfig.for_model(kind, **text, attn_implementation="eager"), torch.float32).eval()
    weights = {}
    for tensor, (_, values) in tensors(name).items():
        found = torch.from_numpy((values.astype(np.uint32) << 16).view(np.float32))
        found = found.transpose(1, 2) if name == "qwen3-vl-moe-vision" and ".experts." in tensor else found
        weights[tensor.replace("language_model.", "")] = found
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    return model


def _logits(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].float().numpy()


def of_llama_cpp(directory: Path, path: Path) -> np.ndarray:
    """Of the checkpoint as a GGUF of F32 tensors, written to `path`."""
    with LlamaModel(write_f32(directory, path)) as model:
        return model.logits(TOKENS)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the most different logit, as a part of the largest one."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
