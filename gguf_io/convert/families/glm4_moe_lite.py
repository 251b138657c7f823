"""GLM-4.7-Flash: DeepSeek V3 with GLM's vocabulary. Its GGUF says deepseek2 and is run as V3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from quantmill.gguf_io.convert import layout, nextn, tokenizer
from quantmill.gguf_io.convert.families import deepseek2, deepseek3
from quantmill.gguf_io.convert.keys import Row


def _keys() -> Iterator[Row]:
    """V3's, in the order in which llama.cpp's converter writes them for this class."""
    for row in deepseek3.FAMILY.keys:
        if row is not deepseek2.ABSORBED:
            yield row
        if row is deepseek2.RANK:
            yield deepseek2.ABSORBED


FAMILY = replace(
    deepseek3.FAMILY,
    classes=("Glm4MoeLiteForCausalLM",),
    model_type="glm4_moe_lite",
    keys=(*_keys(), nextn.LAYERS),
    defaults={
        **deepseek3.FAMILY.defaults,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 20,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "rms_norm_eps": 1e-5,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "v_head_dim": 256,
    },
    vocabulary=tokenizer.glm,
    is_this=lambda facts: False,
    nextn=nextn.Nextn(
        "num_nextn_predict_layers",
        {
            **deepseek2.LATENT,
            **layout.NORMS_BEFORE.shapes,
            **layout.dense_then_experts("n_routed_experts", "n_shared_experts")[1].shapes,
        },
    ),
)
