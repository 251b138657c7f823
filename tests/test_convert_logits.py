"""A converted model computes in llama.cpp what the original computes in transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.convert_models import MODELS, write_f32, write_model
from tests.support.llama_model import LlamaModel

TOKENS = [1, 259, 17, 300, 42, 5, 199, 260, 7, 7, 88, 311, 123, 64, 250, 9]
FAST = ("llama-3.2", "qwen3-moe", "granite-moe")
UNCOMPARABLE = {
    "gemma3-vision": "the tensors of gemma3 in a multimodal wrapper",
    "mistral3-vision": "the tensors of mistral in a multimodal wrapper",
    "ministral3-vision": "the tensors of ministral3 in a multimodal wrapper",
    "qwen3.5-vision": "the tensors of qwen3.5 in a multimodal wrapper",
    "llama-fp8": "transformers reads it with the compressed-tensors package only",
    "deepseek-v3-fp8": "transformers' FP8 kernels need a GPU; the values are tested elsewhere",
    "deepseek-v2-lite": "llama.cpp knows DeepSeek-V2 without q_lora_rank by its 26 or 27 layers only",
    "exaone4-swa": "llama.cpp knows the window of EXAONE 4 in the model of 64 layers only",
}
FLOAT_ERROR = 2e-6  # of the largest logit
# ggml's GELU looks up a table in half precision; its MXFP4 products round activations to eight bits.
HALF_PRECISION_GELU, EIGHT_BIT_ACTIVATIONS = 1e-3, 2e-2
TOLERANCES = {
    "gemma2": HALF_PRECISION_GELU,
    "gemma3": HALF_PRECISION_GELU,
    "starcoder2": HALF_PRECISION_GELU,
    "gpt-oss": EIGHT_BIT_ACTIVATIONS,
}


def transformers_logits(directory, name):
    from transformers import AutoModelForCausalLM, Mxfp4Config

    options = {"quantization_config": Mxfp4Config(dequantize=True)} if name == "gpt-oss" else {}
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", **options
    )
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].float().numpy()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in MODELS
        if name not in UNCOMPARABLE
    ],
)
def test_logits(name, tmp_path):
    directory = write_model(name, tmp_path / "model")
    expected = transformers_logits(directory, name)
    with LlamaModel(write_f32(directory, tmp_path / "model.gguf")) as model:
        found = model.logits(TOKENS)
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(found - expected).max() <= TOLERANCES.get(name, FLOAT_ERROR) * np.abs(expected).max()
