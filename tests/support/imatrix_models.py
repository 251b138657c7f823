"""Tiny random models and chunks that importance is collected from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from quantmill.gguf_io.convert.families import family_of
from quantmill.gguf_io.convert.names import TensorTable, tensor_table
from quantmill.imatrix.collect import Result, Settings, collect
from quantmill.imatrix.matrix import ImportanceMatrix

N_CTX, N_VOCAB = 16, 50


def table_of(model: Any) -> TensorTable:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    family = family_of(config)
    return tensor_table(family, family.completed(config), shapes)


def dense_model() -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=N_VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def experts_model() -> Any:
    torch.manual_seed(2)
    config = transformers.Qwen3MoeConfig(
        vocab_size=N_VOCAB, hidden_size=32, moe_intermediate_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_experts=6, num_experts_per_tok=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "experts" in name or "gate" in name:  # the default is so small that every expert looks alike
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_chunks(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, N_VOCAB, (n, N_CTX)).astype(np.int32)


def collected(model: Any, chunks: np.ndarray, **settings: Any) -> tuple[ImportanceMatrix, Result]:
    result = Result()
    for _ in collect(model, table_of(model), chunks, Settings(**settings), result):
        pass
    return result.matrix(("text",), chunks.shape[1]), result
